package agent

import (
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/network"
)

// typeOfTests is for local experiments (IEEE 802).
const typeOfTests = 0x88b5

// crowd is a third host of a move in a provider network, which sends frames to all, and
// what of them waits for the guest, who reads none.
type crowd struct {
	*move
	socket *os.File
	sent   uint32         // that are numbered from 1
	got    map[uint32]int // how often each has come
}

// beginCrowd has a VM moved, up to the commit.
func beginCrowd(t *testing.T) *crowd {
	t.Helper()
	f, hosts := newFabricFleet(t, "h1", "h2", "h3")
	c := &crowd{move: f.newMove(hosts[:2], inBridge()), got: map[uint32]int{}}
	socket, err := hosts[2].space.OpenPacket(lab.HostBridge, typeOfTests)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	c.socket = socket
	c.prepare()
	run := c.runCommand()
	c.grant(run)
	start := c.copyCommand(0)
	c.source.sendCommand(start)
	c.target.awaitReport("running target", answers(run))
	c.source.awaitReport("measurement", answers(start))
	waitFor(t, "a frame that QEMU leaves in the tap", func() bool { // it takes one, for the guest
		c.send(0)
		c.read()
		return c.got[0] > 0
	})
	return c
}

// send sends a frame to all.
func (c *crowd) send(number uint32) {
	c.t.Helper()
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x52, 0x54, 0, 0x77, 0, 9)
	frame = binary.BigEndian.AppendUint16(frame, typeOfTests)
	frame = binary.BigEndian.AppendUint32(frame, number)
	if _, err := c.socket.Write(append(frame, make([]byte, 42)...)); err != nil {
		c.t.Error(err)
	}
}

func (c *crowd) sendNext() {
	c.t.Helper()
	c.sent++
	c.send(c.sent)
}

// read takes what waits for the guest.
func (c *crowd) read() {
	c.t.Helper()
	fd := c.target.agent.find(machineKey{testVM, c.epoch + 1}).allPorts()[0].tap.FDs()[0]
	header, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		c.t.Fatal(err)
	}
	buffer := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buffer)
		if err != nil { // there is no more
			return
		}
		if frame := buffer[header:n]; binary.BigEndian.Uint16(frame[12:]) == typeOfTests {
			c.got[binary.BigEndian.Uint32(frame[14:])]++
		}
	}
}

// checkOnce waits for the last frame that was sent. Those before it have come, if they
// have not been lost.
func (c *crowd) checkOnce(when string) {
	c.t.Helper()
	waitFor(c.t, "the last frame "+when, func() bool {
		c.read()
		return c.got[c.sent] > 0
	})
	lost, doubled := 0, 0
	for number := range c.sent {
		switch n := c.got[number+1]; {
		case n == 0:
			lost++
		case n > 1:
			doubled++
		}
	}
	if lost+doubled > 0 {
		c.t.Errorf("%s: of %d frames to all %d were lost and %d doubled", when, c.sent, lost, doubled)
	}
}

func (c *crowd) finishCommand() *godwitv1.Command {
	command := c.command()
	command.Op = &godwitv1.Command_FinishTarget{FinishTarget: &godwitv1.FinishTarget{Vm: testVM}}
	return command
}

// The old host is gone as soon as the target runs: frames to all reach the guest all the
// same, also under an agent that was started since, and after the end of the migration.
func TestFramesToAllWithoutTheOldHost(t *testing.T) {
	c := beginCrowd(t)
	cut, err := c.fleet.lab.Cut("h1", "h2", lab.AllTraffic)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cut.Heal(); err != nil {
			t.Error(err)
		}
	}()
	begun := time.Now()
	c.sendNext()
	c.checkOnce("without the old host")
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("the first frame took %v", took)
	}
	for range 50 {
		c.sendNext()
	}
	c.checkOnce("without the old host")
	c.target.stop()
	c.target.start()
	for range 50 {
		c.sendNext()
	}
	c.checkOnce("under the next agent")
	if answer := c.target.do(c.finishCommand()); answer.GetTargetFinished() == nil {
		t.Errorf("finish: %v", answer)
	}
	c.target.checkGates("at the end", network.Pass)
	for range 50 {
		c.sendNext()
	}
	c.checkOnce("at the end")
}

// While the source forwards, until it no longer does, and afterwards each frame to all
// comes once, whoever of the agents is started again.
func TestFramesToAllComeOnce(t *testing.T) {
	c := beginCrowd(t)
	var sending sync.WaitGroup
	stop := make(chan struct{})
	sending.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.sendNext()
			case <-stop:
				return
			}
		}
	})
	c.target.stop()
	c.target.start()
	c.settle()
	close(stop)
	sending.Wait()
	c.checkOnce("through the end of the forwarding")
}
