package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

const (
	// patience is how long a wait says nothing, remindEvery the time between
	// two lines after that.
	patience    = 2 * time.Second
	remindEvery = 10 * time.Second
)

const waitHelp = `

It waits for that and, when it takes longer than two seconds, says so. Ctrl-C
ends the waiting and nothing else; --no-wait ends when the server has answered.`

// order is something that a VM is told to do and does later.
type order struct {
	op string // "start"
	// told asks for it and gives the VM as the server answered.
	told func(context.Context, *client.Client) (*godwitv1.VM, error)
	// done tells whether it has come about; its error, that it never will.
	done func(*godwitv1.VM) (bool, error)
	// say prints what has become of it; nil tells what the VM is doing.
	say func(*godwitv1.VM) func(io.Writer)
}

// addNoWait is called after addTimeout, whose limit is on the waiting too.
func addNoWait(cmd *cobra.Command, noWait *bool) {
	cmd.Flags().Lookup("timeout").Usage = "how long to wait for the server and for the VM"
	cmd.Flags().BoolVar(noWait, "no-wait", false, "end when the server has answered")
}

// give makes a VM carry an order out and prints what it then is.
func (a *App) give(ctx context.Context, c *client.Client, o order, name string, noWait bool) error {
	// The answer itself can take long: a stop ends a migration first.
	begun := time.Now()
	quiet := a.remind(func(w io.Writer) {
		fmt.Fprintf(w, "the server has not answered for %v\n", time.Since(begun).Round(time.Second))
	})
	vm, err := o.told(ctx, c)
	quiet()
	if errors.Is(err, context.Canceled) {
		fmt.Fprintf(a.Err, "interrupted before the server answered; `godwit vm show %s` tells what it did\n", name)
	}
	if err != nil {
		return named(o.op, "vm "+name, err)
	}
	if !noWait {
		if vm, err = a.awaitVM(ctx, c, o, vm); err != nil {
			return named(o.op, "vm "+name, err)
		}
	}
	if o.say == nil {
		o.say = vmLine
	}
	return a.printOne(vm, o.say(vm))
}

// awaitVM follows a VM until it has carried out what it was told.
func (a *App) awaitVM(ctx context.Context, c *client.Client, o order, vm *godwitv1.VM) (*godwitv1.VM, error) {
	begun := time.Now()
	var last atomic.Pointer[godwitv1.VM]
	last.Store(vm)
	if done, err := o.done(vm); done || err != nil {
		return vm, err
	}
	quiet := a.remind(func(w io.Writer) {
		line := fmt.Sprintf("vm %s is %s on %s for %v; Ctrl-C ends the waiting, not the VM's %s",
			vm.GetName(), last.Load().GetPhase(), last.Load().GetOwner().GetHost(), time.Since(begun).Round(time.Second), o.op)
		fmt.Fprintln(w, line)
	})
	defer quiet()
	err := keepWatching(ctx, true, func() (done, seen bool, err error) {
		return watchVM(ctx, c, vm, func(changed *godwitv1.VM) (bool, error) {
			last.Store(changed)
			return o.done(changed)
		})
	})
	quiet()
	subject := "vm " + vm.GetName()
	switch {
	case err == nil:
		return last.Load(), nil
	case errors.Is(err, context.Canceled):
		fmt.Fprintf(a.Err, "vm %[1]s is still %[2]s, and goes on; follow it with `godwit vm watch %[1]s`\n", vm.GetName(), last.Load().GetPhase())
	case ctx.Err() != nil || fleet.CodeOf(err) == fleet.Deadline: // the server knows the deadline and may be first
		return nil, &fleet.Error{
			Code: fleet.Deadline, Op: o.op, Subject: subject,
			Cause: fmt.Sprintf("it is still %s on %s after %v", last.Load().GetPhase(), last.Load().GetOwner().GetHost(), time.Since(begun).Round(time.Second)),
			Hint:  "it goes on: follow it with `godwit vm watch " + vm.GetName() + "`, or wait longer with --timeout",
		}
	}
	return nil, err
}

// remind says something when patience has run out and then now and again,
// until the function it gives is called.
func (a *App) remind(say func(io.Writer)) (quiet func()) {
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		next := time.NewTimer(patience)
		defer next.Stop()
		for {
			select {
			case <-done:
				return
			case <-next.C:
				say(a.Err)
				next.Reset(remindEvery)
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		group.Wait()
	})
}

// watchVM gives each a VM's states that are not older than vm, until each is
// done with it.
func watchVM(
	ctx context.Context, c *client.Client, vm *godwitv1.VM, each func(*godwitv1.VM) (bool, error),
) (done, seen bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := c.VM.Watch(ctx, &godwitv1.WatchVMsRequest{Name: vm.GetName()})
	if err != nil {
		return false, false, err
	}
	defer changes.Close()
	defer cancel() // before Close, which else waits for the server to end the stream
	for changes.Receive() {
		seen = true
		if changes.Msg().GetDeleted() {
			return false, true, &fleet.Error{Code: fleet.NotFound, Cause: "it was deleted"}
		}
		changed := changes.Msg().GetVm()
		if changed.GetVersion() < vm.GetVersion() {
			continue // a replica that lags behind the one that was told
		}
		if done, err := each(changed); done || err != nil {
			return done, true, err
		}
	}
	return false, seen, changes.Err()
}

// runs is what start and create wait for.
func runs(vm *godwitv1.VM) (bool, error) {
	unfit := func(code fleet.Code, what, hint string) (bool, error) {
		if vm.GetCause() != "" {
			what += ": " + vm.GetCause()
		}
		return false, &fleet.Error{Code: code, Cause: what, Hint: hint}
	}
	switch vm.GetPhase() {
	case "running":
		return true, nil
	case "failed":
		return unfit(fleet.Failed, "it did not start", "its record stays: start it again with `godwit vm start "+vm.GetName()+
			"`, or remove it with `godwit vm delete "+vm.GetName()+"`")
	case "stopped":
		return unfit(fleet.Failed, "it has stopped again", "")
	case "stopping":
		return unfit(fleet.Conflict, "somebody stops it", "")
	}
	return false, nil
}

// stands is what stop waits for.
func stands(vm *godwitv1.VM) (bool, error) {
	switch vm.GetPhase() {
	case "stopped", "failed":
		return true, nil
	case "stopping":
		return false, nil
	}
	return false, &fleet.Error{Code: fleet.Conflict, Cause: "somebody has started it again: it is " + vm.GetPhase()}
}
