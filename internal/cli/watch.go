package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

const (
	// A watch that the server broke off is begun again this often and no
	// longer: a server that restarts, or another leader, is back by then.
	watchRetries = 20
	watchPause   = time.Second
)

// watchToEnd shows a migration until it is final. A bad end is an endedError;
// an interruption tells what goes on and is context.Canceled. Reached tells
// that the server has answered before.
func (a *App) watchToEnd(ctx context.Context, c *client.Client, id string, view view, reached bool) error {
	last, err := follow(ctx, c, id, view, reached)
	if errors.Is(err, context.Canceled) {
		fmt.Fprintf(a.Err, "migration %[1]s goes on; follow it with `godwit migration watch %[1]s`, cancel it with `godwit migration cancel %[1]s`\n", id)
		return err
	}
	if err != nil {
		return named("watch", "migration "+id, err)
	}
	if err := view.end(last); err != nil {
		return err
	}
	return endOf(last)
}

// follow feeds the view until the migration is final and gives its last state.
// A server that was reached once may go away for a while.
func follow(ctx context.Context, c *client.Client, id string, view view, reached bool) (*godwitv1.Migration, error) {
	var last *godwitv1.Migration
	err := keepWatching(ctx, reached, func() (done, seen bool, err error) {
		last, seen, err = stream(ctx, c, id, view)
		return final(last), seen, err
	})
	return last, err
}

// keepWatching begins a watch again that the server has ended before it was
// done. Reached tells that the server has answered before, seen that the watch
// has shown something.
func keepWatching(ctx context.Context, reached bool, watch func() (done, seen bool, err error)) error {
	for retries := 0; ; retries++ {
		done, seen, err := watch()
		if err == nil && done {
			return nil
		}
		if err == nil {
			err = &fleet.Error{Code: fleet.Unavailable, Cause: "the server ended the watch too early"}
		}
		if seen {
			reached, retries = true, 0
		}
		if fleet.CodeOf(err) != fleet.Unavailable || !reached || retries == watchRetries {
			return err
		}
		select {
		case <-time.After(watchPause): // nothing tells when a server is back
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stream shows one stream of changes; seen tells whether anything came.
func stream(ctx context.Context, c *client.Client, id string, view view) (last *godwitv1.Migration, seen bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := c.Migration.Watch(ctx, &godwitv1.WatchMigrationRequest{Id: id})
	if err != nil {
		return nil, false, err
	}
	defer changes.Close()
	defer cancel() // before Close, which else waits for the server to end the stream
	for changes.Receive() {
		last, seen = changes.Msg().GetMigration(), true
		if err := view.show(last); err != nil || final(last) {
			return last, seen, err
		}
	}
	return last, seen, changes.Err()
}

func final(m *godwitv1.Migration) bool {
	switch m.GetState() {
	case "succeeded", "aborted", "needs-operator":
		return true
	}
	return false
}

// endOf gives the error that a final state stands for.
func endOf(m *godwitv1.Migration) error {
	e := &fleet.Error{
		Code: fleet.Failed, Op: "migrate", Subject: "vm " + m.GetVm() + " to " + m.GetTarget(),
		Cause: strings.TrimSuffix(m.GetState()+": "+m.GetCause(), ": "),
	}
	switch m.GetState() {
	case "aborted":
		where := "runs on at " + m.GetSource()
		if m.GetSourceGone() {
			where = fmt.Sprintf("is down: start it by `godwit vm start %s`", m.GetVm())
		}
		e.Hint = fmt.Sprintf("the vm %s; `godwit migration explain %s` tells the whole story", where, m.GetId())
		return &endedError{code: exitAborted, err: e}
	case "needs-operator":
		e.Hint = "`godwit migration explain " + m.GetId() + "` tells the whole story"
		if remedies := m.GetRemedies(); len(remedies) > 0 {
			e.Hint = "to resolve it: " + inWords(remedies)
		}
		return &endedError{code: exitNeedsOperator, err: e}
	}
	return nil
}
