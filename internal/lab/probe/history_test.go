package probe

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

const ms = int64(time.Millisecond)

// at is a moment of the tests' clock, which is not at 0: 0 means never.
func at(milli int64) int64 { return 1_000_000*ms + milli*ms }

func answer(h *history, sequence, counter uint64, milli int64) {
	h.receive(reply{
		packet: witness.Packet{Sequence: sequence, Counter: counter, Boot: 1},
		at:     at(milli), intact: true,
	})
}

func TestHistoryTellsFaultsApart(t *testing.T) {
	for name, test := range map[string]struct {
		replies func(h *history)
		want    UDPResult
	}{
		"none": {func(h *history) {
			for i := range uint64(4) {
				answer(h, i+1, i+1, 10*int64(i)+1)
			}
		}, UDPResult{LongestGap: 10 * time.Millisecond}},
		"lost": {func(h *history) {
			answer(h, 1, 1, 1)
			answer(h, 4, 2, 31)
		}, UDPResult{Lost: 2, LongestGap: 30 * time.Millisecond}},
		"last ones lost": {func(h *history) {
			answer(h, 1, 1, 1)
		}, UDPResult{Lost: 3, LongestGap: 39 * time.Millisecond}},
		"all lost": {func(h *history) {}, UDPResult{Lost: 4, LongestGap: 40 * time.Millisecond}},
		"reply doubled by the network": {func(h *history) {
			for i := range uint64(4) {
				answer(h, i+1, i+1, 10*int64(i)+1)
				answer(h, i+1, i+1, 10*int64(i)+1)
			}
		}, UDPResult{Duplicated: 4, LongestGap: 10 * time.Millisecond}},
		"packet doubled on its way": {func(h *history) {
			answer(h, 1, 1, 1)
			answer(h, 1, 2, 1)
			answer(h, 2, 3, 11)
			answer(h, 3, 4, 21)
			answer(h, 4, 5, 31)
		}, UDPResult{Duplicated: 1, LongestGap: 10 * time.Millisecond}},
		"order": {func(h *history) {
			answer(h, 2, 1, 11)
			answer(h, 1, 2, 12)
			answer(h, 3, 3, 21)
			answer(h, 4, 4, 31)
		}, UDPResult{Reordered: 1, LongestGap: 11 * time.Millisecond}},
		"guest ran twice from one state": {func(h *history) {
			answer(h, 1, 1, 1)
			answer(h, 2, 2, 11)
			answer(h, 3, 2, 21)
			answer(h, 4, 3, 31)
		}, UDPResult{Replayed: 1, LongestGap: 10 * time.Millisecond}},
		"reboot": {func(h *history) {
			answer(h, 1, 1, 1)
			answer(h, 2, 2, 11)
			h.receive(reply{packet: witness.Packet{Sequence: 3, Counter: 1, Boot: 2}, at: at(21), intact: true})
			h.receive(reply{packet: witness.Packet{Sequence: 4, Counter: 2, Boot: 2}, at: at(31), intact: true})
		}, UDPResult{Reboots: 1, LongestGap: 10 * time.Millisecond}},
		"other bytes": {func(h *history) {
			answer(h, 1, 1, 1)
			h.receive(reply{packet: witness.Packet{Sequence: 2, Counter: 2, Boot: 1}, at: at(11)})
			answer(h, 3, 3, 21)
			answer(h, 4, 4, 31)
		}, UDPResult{Corrupted: 1, LongestGap: 10 * time.Millisecond}},
		"reply to what was never sent": {func(h *history) {
			answer(h, 0, 9, 1)
			answer(h, 5, 9, 1)
		}, UDPResult{Lost: 4, LongestGap: 40 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			var h history
			from := h.mark(time.Unix(0, at(0)))
			for i := range int64(4) {
				if _, err := h.send(at(10 * i)); err != nil {
					t.Fatal(err)
				}
			}
			test.replies(&h)
			got := h.result(from, h.mark(time.Unix(0, at(40))))
			test.want.Sent, test.want.LongestSendGap = 4, 10*time.Millisecond
			got.RTT = Quantiles{}
			if got != test.want {
				t.Errorf("\n got %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// A packet counts in the window that it was sent in, and an outage that a
// mark falls into in both windows.
func TestHistoryWindows(t *testing.T) {
	var h history
	start := h.mark(time.Unix(0, at(0)))
	for i := range int64(5) {
		h.send(at(10 * i))
	}
	middle := h.mark(time.Unix(0, at(50)))
	for i := range int64(5) {
		h.send(at(50 + 10*i))
	}
	end := h.mark(time.Unix(0, at(100)))
	for _, sequence := range []uint64{1, 2} {
		answer(&h, sequence, sequence, 10*int64(sequence))
	}
	for sequence := uint64(3); sequence <= 9; sequence++ {
		answer(&h, sequence, sequence, 95)
	}
	first, second := h.result(start, middle), h.result(middle, end)
	if first.Sent != 5 || first.Lost != 0 || first.LongestGap != 75*time.Millisecond {
		t.Errorf("first window: %+v", first)
	}
	if second.Sent != 5 || second.Lost != 1 || second.LongestGap != 45*time.Millisecond {
		t.Errorf("second window: %+v", second)
	}
	if got := first.RTT; got.Max != 75*time.Millisecond || got.P50 != 55*time.Millisecond {
		t.Errorf("round trips: %+v", got)
	}
}

func TestLosses(t *testing.T) {
	var h history
	start := h.mark(time.Unix(0, at(0)))
	for i := range int64(6) {
		h.send(at(10 * i))
	}
	end := h.mark(time.Unix(0, at(60)))
	answer(&h, 1, 1, 1)
	answer(&h, 4, 2, 31)
	answer(&h, 5, 3, 41)
	moment := func(milli int64) time.Time { return time.Unix(0, at(milli)) }
	want := []Loss{{moment(10), moment(20), 2}, {moment(50), moment(50), 1}}
	if got := h.losses(start, end); !slices.Equal(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	if got := h.losses(end, end); len(got) != 0 {
		t.Errorf("after the end: %v", got)
	}
}

func TestAwait(t *testing.T) {
	var h history
	for range 3 {
		h.send(at(0))
	}
	answer(&h, 1, 1, 1)
	if err := h.await(t.Context(), 1, 2, 0); err != nil {
		t.Errorf("what is answered already: %v", err)
	}
	woken := make(chan error)
	go func() { woken <- h.await(t.Context(), 1, 4, 0) }()
	go func() { woken <- h.await(t.Context(), 2, maxPackets, 2) }()
	answer(&h, 3, 2, 2)
	answer(&h, 3, 2, 2) // a copy is no second answer
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.await(ended, 2, 3, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting with an ended context: %v", err)
	}
	answer(&h, 2, 3, 3)
	for range 2 {
		if err := <-woken; err != nil {
			t.Error(err)
		}
	}
	if len(h.waiters) != 0 {
		t.Errorf("%d waiters are left", len(h.waiters))
	}
}
