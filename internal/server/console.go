package server

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

const (
	// consoleAgain is the pause before a host is asked again that did not answer, or
	// has no instance yet.
	consoleAgain = 200 * time.Millisecond
	// restWithin is for what an instance has said before another took its place.
	restWithin = 2 * time.Second
	// typeWithin is how long input waits for the instance that is to have it.
	typeWithin = 10 * time.Second
	// typeAgain is the pause between looks at whether there is one.
	typeAgain = 50 * time.Millisecond
)

// Console sends what a VM says, from whichever host it runs on.
func (v vmService) Console(ctx context.Context, request *godwitv1.ConsoleRequest, stream *connect.ServerStream[godwitv1.ConsoleResponse]) error {
	vms := v.server.tables.vms
	_, revision, err := vms.All(ctx)
	if err != nil {
		return err
	}
	entry, err := v.server.getVM(ctx, "open console", request.GetName())
	if err != nil {
		return err
	}
	if vm := entry.Value; vm.Owner.Host == "" {
		return notRunning("open console", vm)
	}
	c := &consoleView{server: v.server, send: stream.Send, vm: entry.Value, history: request.GetHistoryBytes(), fresh: request.GetEpoch() == 0}
	if request.GetEpoch() == uint64(entry.Value.Owner.Epoch) {
		c.offset = request.GetOffset()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := make(chan fleet.VM)
	failed := make(chan error, 1)
	go func() { failed <- v.server.followOwner(ctx, entry.Name, revision, changes) }()
	return c.run(ctx, changes, failed)
}

func notRunning(op string, vm fleet.VM) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: op, Subject: "vm " + string(vm.Name), Cause: "it is " + string(vm.Phase),
		Hint: "start it: godwit vm start " + string(vm.Name),
	}
}

// followOwner gives the record of a VM after each change, the zero one when it is
// deleted.
func (s *Server) followOwner(ctx context.Context, name string, revision int64, changes chan<- fleet.VM) error {
	watch := s.tables.vms.Watch(ctx, revision)
	for event := range watch.Events() {
		if s.tables.vms.Name(event.Record) != name {
			continue
		}
		var vm fleet.VM
		if !event.Deleted {
			entry, err := s.tables.vms.Decode(event.Record)
			if err != nil {
				return err
			}
			vm = entry.Value
		}
		select {
		case changes <- vm:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return watch.Err()
}

// consoleView is one look at a console, over all moves of its VM.
type consoleView struct {
	server  *Server
	send    func(*godwitv1.ConsoleResponse) error
	vm      fleet.VM
	history uint64 // bytes of the first instance that are wanted
	fresh   bool   // nothing was read yet
	shown   fleet.Owner
	offset  uint64 // of what is to come next from the owner
}

// run reads from one owner after the other. Nothing else sends meanwhile.
func (c *consoleView) run(ctx context.Context, changes <-chan fleet.VM, failed <-chan error) error {
	for {
		next, err := c.readOwner(ctx, changes, failed)
		if err != nil {
			return err
		}
		c.readRest(ctx)
		if next.UID != c.vm.UID || next.Owner.Host == "" {
			return c.send(&godwitv1.ConsoleResponse{Ended: c.endOf(next)})
		}
		c.vm, c.fresh, c.offset = next, false, 0
	}
}

func (c *consoleView) endOf(next fleet.VM) string {
	if next.UID != c.vm.UID {
		return fmt.Sprintf("vm %s is deleted", c.vm.Name)
	}
	if next.Cause != "" {
		return fmt.Sprintf("vm %s is %s: %s", c.vm.Name, next.Phase, next.Cause)
	}
	return fmt.Sprintf("vm %s is %s", c.vm.Name, next.Phase)
}

// readOwner reads from the VM's owner until it has another one, and gives the
// record that says so.
func (c *consoleView) readOwner(ctx context.Context, changes <-chan fleet.VM, failed <-chan error) (fleet.VM, error) {
	reading, stop := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stop(c.follow(reading))
	}()
	defer func() { stop(nil); <-ended }()
	for {
		select {
		case next := <-changes:
			if next.UID != c.vm.UID || next.Owner != c.vm.Owner {
				return next, nil
			}
		case err := <-failed:
			return fleet.VM{}, err
		case <-reading.Done():
			return fleet.VM{}, context.Cause(reading)
		}
	}
}

// follow reads from the VM's present owner until ctx ends or what fails does not
// pass. A host may be away, have no instance yet, or an agent that starts anew.
func (c *consoleView) follow(ctx context.Context) error {
	for {
		err := c.read(ctx, true)
		switch code := fleet.CodeOf(err); {
		case err == nil, code == fleet.NotFound:
		case code == fleet.Unavailable && !c.fresh:
		default:
			return err
		}
		if !pause(ctx, consoleAgain) {
			return ctx.Err()
		}
	}
}

// pause is false if ctx ends before.
func pause(ctx context.Context, length time.Duration) bool {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// readRest reads what the owner has said that has lost the VM. If that fails, the
// new one is more important.
func (c *consoleView) readRest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restWithin)
	defer cancel()
	if err := c.read(ctx, false); err != nil {
		c.server.log.Debug("the last of a console could not be read", "vm", c.vm.Name, "host", c.vm.Owner.Host, "error", err)
	}
}

// read sends what the owner says, from where it was left.
func (c *consoleView) read(ctx context.Context, follow bool) error {
	host, err := c.server.agentOf(ctx, c.vm.Owner.Host)
	if err != nil {
		return err
	}
	request := &godwitv1.ReadConsoleRequest{
		Vm: string(c.vm.Name), Epoch: uint64(c.vm.Owner.Epoch), Uid: string(c.vm.UID), Offset: c.offset, Follow: follow,
	}
	if c.fresh {
		request.Last = &c.history
	}
	stream, err := host.Console.Read(ctx, request)
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		said := stream.Msg()
		c.fresh, c.offset = false, said.GetOffset()
		message := &godwitv1.ConsoleResponse{Output: said.GetOutput(), Epoch: uint64(c.vm.Owner.Epoch), Offset: c.offset}
		if c.shown != c.vm.Owner {
			c.shown, message.Host = c.vm.Owner, string(c.vm.Owner.Host)
		}
		if len(message.GetOutput()) == 0 && message.GetHost() == "" {
			continue
		}
		if err := c.send(message); err != nil {
			return err
		}
	}
	return stream.Err()
}

// Type gives a VM input, where it runs. While it changes hosts, that waits.
func (v vmService) Type(ctx context.Context, request *godwitv1.TypeRequest) (*godwitv1.TypeResponse, error) {
	if _, err := v.server.getVM(ctx, "type", request.GetName()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, typeWithin)
	defer cancel()
	for {
		err := v.typeNow(ctx, request)
		code := fleet.CodeOf(err)
		if code != fleet.NotFound && code != fleet.Unavailable {
			return &godwitv1.TypeResponse{}, err
		}
		if !pause(ctx, typeAgain) {
			return nil, err
		}
	}
}

// typeNow is Unavailable while the VM is between two hosts.
func (v vmService) typeNow(ctx context.Context, request *godwitv1.TypeRequest) error {
	entry, err := v.server.getVM(ctx, "type", request.GetName())
	if err != nil {
		return err
	}
	vm := entry.Value
	if vm.Owner.Host == "" {
		return notRunning("type", vm)
	}
	if vm.Migration != "" {
		moving, err := v.server.tables.migrations.Get(ctx, string(vm.Migration))
		if err != nil {
			return err
		}
		if moving.Value.State == migration.Switching || moving.Value.AwaitsTarget() {
			return &fleet.Error{Code: fleet.Unavailable, Op: "type", Subject: "vm " + entry.Name, Cause: "it is between two hosts", Hint: "try again"}
		}
	}
	host, err := v.server.agentOf(ctx, vm.Owner.Host)
	if err != nil {
		return err
	}
	_, err = host.Console.Write(ctx, &godwitv1.WriteConsoleRequest{
		Vm: string(vm.Name), Epoch: uint64(vm.Owner.Epoch), Uid: string(vm.UID), Input: request.GetInput(),
	})
	return err
}
