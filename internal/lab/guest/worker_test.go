package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

// told is a trade that does what it is told to.
type told struct {
	prepared, done error
	did            []int
	closed         bool
}

func (r *told) prepare(witness.Load) error { return r.prepared }

func (r *told) do(units []int, _ witness.Load) error {
	r.did = append(r.did, units...)
	return r.done
}

func (r *told) close() { r.closed = true }

var sweep = witness.Load{BytesPerSecond: 1 << 20, SetMiB: 1, Pattern: witness.Sequential}

// atWork is a worker whose clock is set by hand.
func atWork(t *testing.T, r *told) (*worker, *time.Duration) {
	t.Helper()
	now := new(time.Duration)
	w := newWorker(func() time.Duration { return *now })
	w.trade = r
	if err := w.begin(sweep); err != nil {
		t.Fatal(err)
	}
	return w, now
}

func TestWorkerDoesWhatIsDue(t *testing.T) {
	r := &told{}
	w, now := atWork(t, r)
	for range 100 {
		*now += 10 * time.Millisecond
		w.turn()
	}
	if seen := w.report(); seen.Work != 256 || seen.Pages != 256 || seen.Load != sweep || len(r.did) != 256 || r.did[255] != 255 {
		t.Errorf("after a second of 1 MiB/s: %+v, units %v", seen, r.did)
	}
}

func TestRefusedLoadChangesNothing(t *testing.T) {
	r := &told{}
	w, _ := atWork(t, r)
	r.prepared = errors.New("no room")
	other := sweep
	other.SetMiB = 2
	if err := w.begin(other); !errors.Is(err, r.prepared) {
		t.Errorf("no room: %v", err)
	}
	if err := w.begin(witness.Load{SetMiB: -1}); err == nil {
		t.Error("an invalid load was taken")
	}
	if err := w.begin(witness.Load{Kind: witness.Redis, SetMiB: witness.MaxSetMiB}); err == nil {
		t.Error("a database larger than any memory was taken")
	}
	if seen := w.report(); seen.Load != sweep || w.trade != trade(r) || r.closed {
		t.Errorf("it is at %+v", seen)
	}
}

func TestLoadThatFails(t *testing.T) {
	r := &told{done: errors.New("the server is gone")}
	w, now := atWork(t, r)
	*now += 20 * time.Millisecond
	if w.turn() {
		t.Error("there is more to do")
	}
	if seen := w.report(); seen.Error != r.done.Error() || seen.Load != (witness.Load{}) || seen.Work != 0 || !r.closed {
		t.Errorf("it is at %+v; closed: %v", seen, r.closed)
	}
	if err := w.begin(sweep); err != nil {
		t.Fatal(err)
	}
	*now += 20 * time.Millisecond
	w.turn()
	if seen := w.report(); seen.Error != "" || seen.Work != 5 {
		t.Errorf("after another load it is at %+v", seen)
	}
	w.trade.close()
}

// Memory that is there stays as it is when a load needs more.
func TestMemoryGrows(t *testing.T) {
	noise := witness.Noise(1)
	m := &memory{noise: &noise}
	defer m.close()
	if err := m.prepare(witness.Load{SetMiB: 1}); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(m.all)
	for _, set := range []int{2, 1} {
		if err := m.prepare(witness.Load{SetMiB: set, ZeroPercent: 100}); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.all) != 2<<20 || !bytes.Equal(m.all[:1<<20], before) || len(bytes.Trim(m.all[1<<20:], "\x00")) != 0 {
		t.Errorf("%d bytes, or others than before, or the new ones are not zeros", len(m.all))
	}
}

// The answers of Redis are those of a server at the other end of a pipe.
func TestRedisAnswers(t *testing.T) {
	for answer, want := range map[string]string{"+OK\r\n": "", "-OOM command not allowed\r\n": "OOM"} {
		ours, theirs := net.Pipe()
		noise := witness.Noise(1)
		r := &redis{noise: &noise, conn: ours, in: bufio.NewReader(ours), out: bufio.NewWriter(ours)}
		asked := make(chan []byte)
		go func() {
			var all []byte
			for range 2 {
				request := make([]byte, len("*3\r\n$3\r\nSET\r\n$1\r\n7\r\n$4096\r\n")+witness.PageSize+2)
				n, _ := io.ReadFull(theirs, request)
				all = append(all, request[:n]...)
			}
			theirs.Write([]byte(answer + answer))
			asked <- all
		}()
		err := r.do([]int{7, 8}, witness.Load{ZeroPercent: 100})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", answer, err)
		}
		value := "$4096\r\n" + strings.Repeat("\x00", witness.PageSize) + "\r\n"
		if all := string(<-asked); all != "*3\r\n$3\r\nSET\r\n$1\r\n7\r\n"+value+"*3\r\n$3\r\nSET\r\n$1\r\n8\r\n"+value {
			t.Errorf("it asked %.60q", all)
		}
		r.close()
	}
}
