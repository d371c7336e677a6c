package agent

import (
	"bytes"
	"crypto/tls"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pki"
)

// badCommands are such as no server sends.
func badCommands() map[string]*godwitv1.Command {
	outside := firmware(1)
	outside.Vm = "../../outside"
	long := firmware(1)
	long.Vm = strings.Repeat("x", 1<<20)
	later := firmware(7)
	unknown := &godwitv1.Command{Subject: testVM, Epoch: 1, Sequence: 9}
	unknown.ProtoReflect().SetUnknown([]byte("\xfa\x07\x03abc")) // field 127
	start := func(instance *godwitv1.Instance) *godwitv1.Command {
		c := startCommand(9, instance)
		c.Subject, c.Epoch = testVM, 1
		return c
	}
	return map[string]*godwitv1.Command{
		"nothing":                      {},
		"an operation of another time": unknown,
		"no instance":                  {Subject: testVM, Epoch: 1, Op: &godwitv1.Command_StartInstance{}},
		"a name that leads outside":    start(outside),
		"a name of a megabyte":         start(long),
		"an instance of another epoch": start(later),
		"a subject that is no name":    {Subject: "m/1", Epoch: 1, Op: &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: testVM}}},
	}
}

func TestBadCommands(t *testing.T) {
	for name, command := range badCommands() {
		if err := checkCommand(command); err == nil {
			t.Errorf("%s is a command", name)
		} else if len(err.Error()) > 1000 {
			t.Errorf("%s: the error has %d characters", name, len(err.Error()))
		}
	}
	for _, good := range []*godwitv1.Command{
		startCommand(1, firmware(1)), stopCommand(2, 1, time.Second), forgetCommand(3, 1),
		{Subject: "m-1", Epoch: 1, Op: &godwitv1.Command_PrepareTarget{PrepareTarget: &godwitv1.PrepareTarget{Instance: firmware(2)}}},
	} {
		if err := checkCommand(good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
}

// A server that says nonsense makes an agent neither end nor do anything to its
// guest.
func TestServerSaysNonsense(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Busy()))
	events := h.instance(testVM, 1).Subscribe()
	for _, command := range badCommands() {
		h.sendCommand(command)
	}
	h.send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Command{}})
	h.send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Addresses{Addresses: &godwitv1.AddressMap{
		Version: 1, Networks: []*godwitv1.NetworkMap{{
			Name: "../etc", Vni: math.MaxUint32, Mtu: math.MinInt32, Peers: []string{"nowhere"},
			Entries: []*godwitv1.AddressEntry{{Mac: "no", Ips: []string{"neither"}, Address: "nor"}},
		}},
	}}})
	h.send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Welcome{Welcome: &godwitv1.Welcome{HeartbeatMs: math.MaxInt64}}})
	h.idle(1)
	checkUndisturbed(t, events)
	h.checkRunState(testVM, 1, "running")
	h.checkGates("after nonsense", network.Pass)
	if outside, err := os.ReadDir(filepath.Dir(h.dir)); err != nil || len(outside) != 3 { // its folder, its QEMU's script, the disk
		t.Errorf("outside of its folder there are %v, %v", outside, err)
	}
	// More than an agent reads ends the session, and there is another.
	before := h.sessions()
	h.send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Addresses{Addresses: &godwitv1.AddressMap{
		Networks: []*godwitv1.NetworkMap{{Name: strings.Repeat("x", 17<<20)}},
	}}})
	h.await("another session", func() bool { return len(h.hellos) > before && h.out != nil })
	h.checkRunState(testVM, 1, "running")
}

func (p *peer) sessions() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.hellos)
}

// What comes to the port for other hosts and is no call ends its connection, and
// nothing else.
func TestGarbageFromPeers(t *testing.T) {
	m := newMove(t)
	m.prepare()
	huge, err := proto.Marshal(&godwitv1.GiveUpRequest{Migration: strings.Repeat("x", 2*peerMessageMax), Vm: testVM, Epoch: 2})
	if err != nil {
		t.Fatal(err)
	}
	call := "POST /godwit.v1.PeerService/GiveUp HTTP/1.1\r\nHost: h2\r\nContent-Type: application/proto\r\n"
	cases := map[string]struct {
		keeper *pki.Keeper // nil: no certificate
		text   string
		says   string
	}{
		"noise":                     {m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}), "\x00\xff\xfe\r\n\r\n", "400"},
		"a call of nobody":          {nil, call + "Content-Length: 0\r\nConnection: close\r\n\r\n", "permission_denied"},
		"a message that is none":    {m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}), call + "Content-Length: 3\r\nConnection: close\r\n\r\n\xff\xff\xff", "invalid_argument"},
		"a message that is too big": {m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}), call + "Connection: close\r\nContent-Length: " + strconv.Itoa(len(huge)) + "\r\n\r\n" + string(huge), "resource_exhausted"},
		"a host of another move":    {m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: "h9"}), giveUpCall(t, call, testMigration), "permission_denied"},
		"a move of another time":    {m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}), giveUpCall(t, call, "m0"), "m0"},
	}
	for name, test := range cases {
		if got := m.target.rawCall(test.keeper, test.text); !strings.Contains(got, test.says) {
			t.Errorf("%s: answered with %q, want %q", name, got, test.says)
		}
	}
	m.target.checkRunState(testVM, 2, "inmigrate")
	run := m.runCommand()
	m.grant(run)
	m.source.sendCommand(m.copyCommand(0))
	m.target.awaitReport("running target", answers(run))
	m.settle()
}

func giveUpCall(t *testing.T, head, migration string) string {
	t.Helper()
	body, err := proto.Marshal(&godwitv1.GiveUpRequest{Migration: migration, Vm: testVM, Epoch: 2})
	if err != nil {
		t.Fatal(err)
	}
	return head + "Connection: close\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + string(body)
}

// rawCall writes bytes to the host's port for peers and gives all that comes back.
func (h *testHost) rawCall(keeper *pki.Keeper, text string) string {
	h.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true} // the certificate is not what is tested
	if keeper != nil {
		config = keeper.ClientConfig(pki.Expect{Kind: pki.Host, Name: h.name})
	}
	config.NextProtos = []string{"http/1.1"}
	var answer bytes.Buffer
	err := h.space.Do(func() error {
		conn, err := tls.Dial("tcp", netip.AddrPortFrom(h.space.Addr, testPeerPort).String(), config)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, text); err != nil {
			return err
		}
		_, err = io.Copy(&answer, conn)
		return err
	})
	if err != nil {
		h.t.Logf("the connection ended with %v", err)
	}
	return answer.String()
}
