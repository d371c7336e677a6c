package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/pledge"
)

// between stands between an agent and the monitor of a real QEMU, and can say
// what QEMU would never say.
type between struct {
	path, real string

	mu     sync.Mutex
	client net.Conn // the newest
}

// standBetween takes the place of a monitor whose agent was stopped.
func standBetween(h *testHost, epoch fleet.Epoch) *between {
	h.t.Helper()
	path := filepath.Join(h.agent.instanceDir(machineKey{testVM, epoch}), "qmp.sock")
	b := &between{path: path, real: path + ".real"}
	if err := os.Rename(path, b.real); err != nil {
		h.t.Fatal(err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			b.serve(client)
		}
	}()
	return b
}

// serve passes everything on until one side has ended.
func (b *between) serve(client net.Conn) {
	defer client.Close()
	monitor, err := net.Dial("unix", b.real)
	if err != nil {
		return
	}
	b.mu.Lock()
	b.client = client
	b.mu.Unlock()
	go func() {
		_, _ = io.Copy(monitor, client)
		monitor.Close()
	}()
	lines := bufio.NewReader(monitor)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		b.say(string(line))
	}
}

func (b *between) say(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, _ = io.WriteString(b.client, text) // it may have gone
}

// nonsense is what breaks the protocol.
var nonsense = map[string]string{
	"garbage":            "}{\n",
	"a reply to nothing": `{"return": {}, "id": 1000000}` + "\n",
	"a line too long":    strings.Repeat("x", 9<<20),
}

func ended(r *godwitv1.Report) bool { return r.GetInstance().GetState() == "exited" }

// A QEMU whose monitor breaks the protocol runs on. Nobody is told that it has
// ended, and the agent takes it over again.
func TestMonitorBreaks(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Busy()))
	h.stop()
	monitor := standBetween(h, 1)
	h.start()
	m := h.agent.find(machineKey{testVM, 1})
	for name, text := range nonsense {
		before := m.held()
		monitor.say(text)
		waitFor(t, "another adoption after "+name, func() bool { return m.held() != nil && m.held() != before })
		h.checkRunState(testVM, 1, "running")
	}
	if err := os.Rename(monitor.path, monitor.path+".away"); err != nil {
		t.Fatal(err)
	}
	monitor.say("}{\n")
	waitFor(t, "an adoption that fails", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.unadopted != nil
	})
	h.shut()
	h.reopen()
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "running" {
		t.Errorf("hello: %v", got)
	}
	if err := os.Rename(monitor.path+".away", monitor.path); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the adoption", func() bool { return m.held() != nil })
	if n := h.count(ended); n != 0 || len(h.processes()) != 1 {
		t.Errorf("%d ends were told, and there are %v", n, h.processes())
	}
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// In a copy it is a failure of that host, told as such, and the guest stays at
// the source.
func TestMonitorBreaksInACopy(t *testing.T) {
	for _, side := range []string{"source", "target"} {
		t.Run(side, func(t *testing.T) {
			m := newMove(t)
			m.prepare()
			h, epoch := m.source, fleet.Epoch(1)
			if side == "target" {
				h, epoch = m.target, 2
			}
			h.stop()
			monitor := standBetween(h, epoch)
			h.start()
			m.source.sendCommand(m.copyCommand(200 * 1000)) // slow enough to be under way
			m.source.awaitReport("progress", func(r *godwitv1.Report) bool { return r.GetCopyProgress() != nil })
			lost := h.instance(testVM, epoch)
			monitor.say(fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", 1<<40))
			failure := h.awaitReport("failure", pledge.Failed)
			said, gone := failure.GetSourceFailed().GetCause(), failure.GetSourceFailed().GetGone()
			if side == "target" {
				said, gone = failure.GetTargetFailed().GetCause(), failure.GetTargetFailed().GetGone()
			}
			if gone || !strings.Contains(said, "QEMU broke the monitor protocol: a reply to command") {
				t.Errorf("it failed with %q, gone: %t", said, gone)
			}
			taken := h.agent.find(machineKey{testVM, epoch})
			waitFor(t, "the adoption", func() bool { return taken.held() != nil && taken.held() != lost })
			m.abort()
			if n := h.count(ended); n != 0 {
				t.Errorf("%d ends of instances were told", n)
			}
		})
	}
}
