package witness

import (
	"reflect"
	"testing"
)

// FuzzPacket: what passes for a packet is all there, and says itself again.
func FuzzPacket(f *testing.F) {
	b := make([]byte, HeaderSize+1)
	for _, p := range []Packet{{Flow: 1, Sequence: 2, Sent: -3}, {Reply: true, Counter: 1 << 63, Written: 5, WrittenNonce: 6}} {
		p.Marshal(b)
		f.Add(append([]byte{}, b...))
	}
	f.Add(b[:HeaderSize-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePacket(b)
		if err != nil {
			return
		}
		again := make([]byte, HeaderSize)
		p.Marshal(again)
		if got, err := ParsePacket(again); err != nil || got != p {
			t.Errorf("%+v became %+v, %v", p, got, err)
		}
	})
}

// FuzzBlock changes records as they lie on a disk: only a whole one is a record.
func FuzzBlock(f *testing.F) {
	f.Add(uint64(1), uint64(2), int64(-3), uint64(0), []byte{})
	f.Add(uint64(7), uint64(7), int64(7), uint64(BlockSize-1), []byte{1})
	f.Add(uint64(7), uint64(7), int64(7), uint64(0), []byte("GWREC001"))
	f.Fuzz(func(t *testing.T, sequence, boot uint64, clock int64, at uint64, change []byte) {
		want := Record{Sequence: sequence, Boot: boot, Clock: clock, Counter: ^sequence, Nonce: ^boot}
		block, whole := make([]byte, BlockSize), make([]byte, BlockSize)
		want.Marshal(block)
		copy(whole, block)
		copy(block[at%BlockSize:], change)
		got, err := ParseRecord(block)
		if same := reflect.DeepEqual(block, whole); same && (err != nil || got != want) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		} else if !same && err == nil {
			t.Errorf("a block that was changed at %d is a record: %+v", at%BlockSize, got)
		}
		if _, err := ParseRecord(change); err == nil && len(change) != BlockSize {
			t.Errorf("%d bytes are a record", len(change))
		}
	})
}

// FuzzArgs: what a guest is told survives the command line.
func FuzzArgs(f *testing.F) {
	for _, seed := range []string{
		"quiet godwit.port=52:54:00:00:00:01,10.0.0.2/24,2001:db8::2/64 godwit.disk=100",
		`godwit.load={"bytes_per_second":-1,"set_mib":3}`, "godwit.load={}", "godwit.port=", "godwit.port=x,y", "godwit.disk=-1", "godwit.", "godwit.port=02:00:5e:10:00:00:00:01",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args, err := ParseArgs(line)
		if err != nil {
			return
		}
		if again, err := ParseArgs(args.CommandLine()); err != nil || !reflect.DeepEqual(again, args) {
			t.Errorf("%+v became %+v, %v", args, again, err)
		}
	})
}

// FuzzLoad: a load that is taken is valid, and says itself again.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"{}", `{"bytes_per_second":5,"set_mib":5,"pattern":"zipf","exponent":1e-9,"zero_percent":100}`,
		`{"kind":"compile","bytes_per_second":-1,"on_ns":1,"off_ns":2,"for_ns":3,"then":{"kind":"compile"}}`,
		`{"then":{"then":{}}}`, `{"set_mib":1e9}`, "{}{}", "null", "[]",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLoad(text)
		if err != nil {
			return
		}
		if err := l.Valid(); err != nil {
			t.Errorf("%+v was taken: %v", l, err)
		}
		if again, err := ParseLoad(l.JSON()); err != nil || !reflect.DeepEqual(again, l) {
			t.Errorf("%+v became %+v, %v", l, again, err)
		}
	})
}
