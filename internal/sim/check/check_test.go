package check

import (
	"strings"
	"testing"
	"time"
)

var (
	old   = Instance{VM: "vm", Epoch: 1, Host: "h1", Birth: 1}
	newer = Instance{VM: "vm", Epoch: 2, Host: "h2", Birth: 2}
)

func TestGuests(t *testing.T) {
	cases := map[string]struct {
		did  func(*Guests)
		want string // in the first fault; "" for none
	}{
		"handed over": {func(g *Guests) {
			g.Runs(old, 0)
			g.Speaks(old)
			g.Falls(old)
			g.Stops(old, 7)
			g.Runs(newer, 7)
			g.Speaks(newer)
		}, ""},
		"two write": {func(g *Guests) {
			g.Runs(old, 0)
			g.Runs(newer, 0)
		}, "two write the volume"},
		"two speak": {func(g *Guests) {
			g.Speaks(old)
			g.Speaks(newer)
		}, "is in effect while"},
		"older after newer": {func(g *Guests) {
			g.Speaks(newer)
			g.Falls(newer)
			g.Speaks(old)
		}, "after an instance at epoch 2"},
		"older writes after newer": {func(g *Guests) {
			g.Runs(newer, 0)
			g.Stops(newer, 0)
			g.Runs(old, 0)
		}, "runs after an instance at epoch 2"},
		"only the lock kept it": {func(g *Guests) {
			g.Runs(old, 0)
			g.Fenced(newer, old)
		}, "only the lock on the image"},
		"the last is ended": {func(g *Guests) {
			g.Runs(old, 0)
			g.Stops(old, 0)
			g.Ended(old)
		}, "was the last of its VM"},
		"a write is lost": {func(g *Guests) {
			g.Runs(old, 0)
			g.Stops(old, 9)
			g.Runs(newer, 8)
		}, "block 9 was acknowledged"},
	}
	for name, test := range cases {
		g := NewGuests(func() time.Duration { return time.Second })
		test.did(g)
		got := strings.Join(g.Faults(), "; ")
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestPackets(t *testing.T) {
	p := &Packets{VM: "vm"}
	for range 5 {
		p.Sent()
	}
	p.Delivered(0)
	p.Delivered(1)
	p.Delivered(1)
	p.Lost(2, "the host is gone", true)
	p.Lost(3, "the gate is closed", false)
	got := strings.Join(p.Faults(), "; ")
	want := "packet 1 to vm was delivered twice; packet 3 to vm is lost: the gate is closed; nobody knows where packet 4 to vm is"
	if got != want {
		t.Errorf("got %q", got)
	}
	if sent, delivered, excused := p.Count(); sent != 5 || delivered != 2 || excused != 1 {
		t.Errorf("%d sent, %d delivered, %d excused", sent, delivered, excused)
	}
}

func TestOwners(t *testing.T) {
	a, b, c := Owner{"h1", 1}, Owner{"h2", 2}, Owner{"h1", 3}
	cases := map[string]struct {
		did func(*Owners)
		bad bool
	}{
		"one after the other": {func(o *Owners) {
			done, _ := o.Swapping(1, 0, a, b)
			done(2)
			o.Read(2, 3, 4, b)
		}, false},
		"read of what was": {func(o *Owners) {
			done, _ := o.Swapping(1, 0, a, b)
			done(2)
			o.Read(2, 3, 4, a)
		}, true},
		"two from the same": {func(o *Owners) {
			for who, to := range []Owner{b, c} {
				done, _ := o.Swapping(who, 0, a, to)
				done(2)
			}
		}, true},
		"never known, and happened": {func(o *Owners) {
			o.Swapping(1, 0, a, b)
			o.Read(2, 3, 4, b)
		}, false},
		"never known, and did not": {func(o *Owners) {
			o.Swapping(1, 0, a, b)
			o.Read(2, 3, 4, a)
		}, false},
		"failed, and happened": {func(o *Owners) {
			_, failed := o.Swapping(1, 0, a, b)
			failed()
			o.Read(2, 3, 4, b)
		}, true},
	}
	for name, test := range cases {
		o := &Owners{VM: "vm", First: a}
		test.did(o)
		if bad := len(o.Faults()) > 0; bad != test.bad {
			t.Errorf("%s: found bad: %v", name, bad)
		}
	}
}
