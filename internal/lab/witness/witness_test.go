package witness

import (
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func TestArgsSurviveTheCommandLine(t *testing.T) {
	want := Args{
		Ports: []Port{
			{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, Addresses: []netip.Prefix{
				netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("2001:db8::2/64"),
			}},
			{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}},
		},
		Dirty: Dirty{RateMiB: 10, SetMiB: 32, Pattern: Hot},
		Disk:  Disk{Rate: 100},
		Run:   []string{"/usr/bin/server", "--port", "1"},
	}
	got, err := ParseArgs(want.CommandLine())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s\n got %+v\nwant %+v: %v", want, got, want, err)
	}
	if got, err := ParseArgs(Args{}.CommandLine()); err != nil || !reflect.DeepEqual(got, Args{}) {
		t.Errorf("nothing to do became %+v: %v", got, err)
	}
}

func TestArgsRefused(t *testing.T) {
	for _, line := range []string{
		"godwit.port=nonsense", "godwit.port=52:54:00:00:00:01,10.0.0.300/24", "godwit.port=52:54:00:00:00:01,10.0.0.1",
		"godwit.dirty=10", "godwit.dirty=-1,5", "godwit.dirty=5,0", "godwit.dirty=5,5,backwards", "godwit.dirty=5,5,hot,x",
		"godwit.disk=fast", "godwit.disk=10001", "godwit.unheard=of", "godwit.run=", "godwit.run=server",
	} {
		if args, err := ParseArgs("quiet " + line + " panic=-1"); err == nil {
			t.Errorf("%s was taken as %+v", line, args)
		}
	}
}

func TestPacketSurvivesTheWire(t *testing.T) {
	for _, want := range []Packet{
		{Flow: 1, Sequence: 2, Sent: 3},
		{Reply: true, Flow: 1 << 63, Sequence: 5, Sent: -6, Counter: 7, Clock: 8, Boot: 9, Nonce: 10, Written: 11, WrittenNonce: 12},
	} {
		b := make([]byte, HeaderSize)
		want.Marshal(b)
		if got, err := ParsePacket(b); err != nil || got != want {
			t.Errorf("got %+v, want %+v: %v", got, want, err)
		}
		if _, err := ParsePacket(b[:HeaderSize-1]); err == nil {
			t.Error("half a header is a packet")
		}
		b[0] ^= 1
		if _, err := ParsePacket(b); err == nil {
			t.Error("a stranger's bytes are a packet")
		}
	}
}

// Two copies of a guest draw different nonces once they have done one thing at
// different times, and a guest never draws one again.
func TestNoncesOfCopies(t *testing.T) {
	var one Nonces
	one.Draw(1)
	other := one
	if one.Draw(2) == other.Draw(3) {
		t.Error("two copies have drawn the same")
	}
	if one.Draw(4) == other.Draw(4) {
		t.Error("two copies have become the same")
	}
	if drawn := one.Draw(5); one.Draw(5) == drawn {
		t.Error("one was drawn twice")
	}
}

// Any single byte that is wrong makes a disk record none.
func TestRecordThatIsTorn(t *testing.T) {
	want := Record{Sequence: 1, Boot: 2, Clock: 3, Counter: 4, Nonce: 5}
	block := make([]byte, BlockSize)
	want.Marshal(block)
	if got, err := ParseRecord(block); err != nil || got != want {
		t.Fatalf("got %+v, want %+v: %v", got, want, err)
	}
	for i := range block {
		block[i] ^= 0x10
		if got, err := ParseRecord(block); err == nil {
			t.Errorf("wrong byte %d is not seen: %+v", i, got)
		}
		block[i] ^= 0x10
	}
	next := make([]byte, BlockSize)
	Record{Sequence: 2, Boot: 2}.Marshal(next)
	copy(block[BlockSize/2:], next[BlockSize/2:])
	if _, err := ParseRecord(block); err == nil {
		t.Error("half of one record and half of the next are a record")
	}
}

func TestLedger(t *testing.T) {
	for name, test := range map[string]struct {
		sequences []uint64
		want      Flow
		lost      uint64
	}{
		"in order":       {[]uint64{1, 2, 3}, Flow{First: 1, Highest: 3, Received: 3}, 0},
		"joined late":    {[]uint64{1 << 40, 1<<40 + 1}, Flow{First: 1 << 40, Highest: 1<<40 + 1, Received: 2}, 0},
		"lost":           {[]uint64{1, 5}, Flow{First: 1, Highest: 5, Received: 2}, 3},
		"doubled":        {[]uint64{1, 2, 2, 1, 3}, Flow{First: 1, Highest: 3, Received: 5, Duplicated: 2}, 0},
		"other order":    {[]uint64{2, 1, 4, 3}, Flow{First: 1, Highest: 4, Received: 4, Reordered: 2}, 0},
		"far ahead":      {[]uint64{1, 100_000, 100_000}, Flow{First: 1, Highest: 100_000, Received: 3, Duplicated: 1}, 99_998},
		"place is taken": {[]uint64{1, 1 + windowSize, 1 + windowSize}, Flow{First: 1, Highest: 1 + windowSize, Received: 3, Duplicated: 1}, windowSize - 1},
	} {
		ledger := NewLedger()
		for i, sequence := range test.sequences {
			if counter := ledger.Note(9, sequence, 0); counter != uint64(i)+1 {
				t.Errorf("%s: packet %d was counted as %d", name, i+1, counter)
			}
		}
		test.want.Flow = 9
		flows := ledger.Flows()
		if len(flows) != 1 || flows[0] != test.want || flows[0].Lost() != test.lost {
			t.Errorf("%s: got %+v, want %+v and %d lost", name, flows, test.want, test.lost)
		}
	}
}

func TestLedgerForgetsTheFlowLongestIdle(t *testing.T) {
	ledger := NewLedger()
	for flow := range uint64(maxFlows) {
		ledger.Note(flow, 1, time.Duration(flow))
	}
	ledger.Note(0, 2, maxFlows)
	ledger.Note(1000, 1, maxFlows+1)
	flows := ledger.Flows()
	if len(flows) != maxFlows || flows[0].Flow != 0 || flows[1].Flow != 2 || flows[maxFlows-1].Flow != 1000 {
		t.Errorf("%d flows, of which flow 1 should be the only one gone: %+v", len(flows), flows)
	}
}
