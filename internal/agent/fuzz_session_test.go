package agent

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

// FuzzSaid reads what a server may say on a session, but for commands: an
// address that is taken can be set as it is, and what is kept of the store can
// be read again.
func FuzzSaid(f *testing.F) {
	entry := func(mac, address string, ips ...string) *godwitv1.SessionResponse {
		return &godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Addresses{Addresses: &godwitv1.AddressMap{
			Networks: []*godwitv1.NetworkMap{{Entries: []*godwitv1.AddressEntry{{Mac: mac, Address: address, Ips: ips}}}},
		}}}
	}
	for _, message := range []*godwitv1.SessionResponse{
		entry("02:00:00:00:00:01", "10.0.0.2", "10.1.0.1", "fd00::1"), entry("no", "10.0.0.2"),
		entry("02:00:00:00:00:01", "nowhere"), entry("02:00:00:00:00:01", "10.0.0.2", "10.0.0.300"),
		entry("02:00:00:00:00:01", "10.0.0.1", "fe80::1%eth0"), entry("02:00:00:00:00:01", "fe80::1%eth0"),
		entry("02:00:00:00:00:00:00:01", "10.0.0.2"),
		{Message: &godwitv1.SessionResponse_Welcome{Welcome: &godwitv1.Welcome{Store: &godwitv1.StoreMark{Cluster: 1<<64 - 1, Revision: -1}}}},
		{Message: &godwitv1.SessionResponse_Heartbeat{}}, {},
	} {
		text, err := proto.Marshal(message)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.SessionResponse{}
		if proto.Unmarshal(text, message) != nil {
			return
		}
		a := &Agent{
			config: Config{Dir: t.TempDir(), Address: netip.MustParseAddr("10.0.0.1")}, log: slog.New(slog.DiscardHandler), marked: make(chan struct{}, 1),
		}
		for _, one := range message.GetAddresses().GetNetworks() {
			for _, entry := range one.GetEntries() {
				checkAddress(t, a, entry)
			}
		}
		if mark := message.GetWelcome().GetStore(); mark != nil {
			checkMark(t, a, mark)
		}
	})
}

func checkAddress(t *testing.T, a *Agent, entry *godwitv1.AddressEntry) {
	t.Helper()
	address, err := a.address(entry, map[string]string{})
	if err != nil {
		return
	}
	if len(address.MAC) != 6 || !address.Host.IsValid() || len(address.IPs) != len(entry.GetIps()) {
		t.Errorf("%v was taken as %+v", entry, address)
	}
	for _, ip := range append(address.IPs, address.Host) {
		if ip.Zone() != "" {
			t.Errorf("%v has the zone of another host", ip)
		}
	}
}

func checkMark(t *testing.T, a *Agent, mark *godwitv1.StoreMark) {
	t.Helper()
	a.noteMark(mark)
	a.keepMark()
	kept, err := loadMark(a.config.Dir)
	if err != nil || kept.GetCluster() != mark.GetCluster() || kept.GetGeneration() != mark.GetGeneration() || kept.GetRevision() != mark.GetRevision() {
		t.Errorf("%v became %v, %v", mark, kept, err)
	}
	if files, err := filepath.Glob(filepath.Join(a.config.Dir, "*")); err != nil || len(files) != 1 {
		t.Errorf("it is kept in %v, %v", files, err)
	}
}

// FuzzDecision reads what a server may answer to a commit: only the word for the
// epoch of this very target gives it the right to run.
func FuzzDecision(f *testing.F) {
	for _, answer := range []*godwitv1.CommitResponse{{Epoch: 7, Sequence: 3}, {Epoch: 6}, {Epoch: 8}, {SourceStopped: true}, {}} {
		text, err := proto.Marshal(answer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		answer := &godwitv1.CommitResponse{}
		if proto.Unmarshal(text, answer) != nil {
			return
		}
		granted := pledge.Decided(7, fleet.Epoch(answer.GetEpoch()), nil) == pledge.Granted
		if granted != (answer.GetEpoch() == 7) {
			t.Errorf("%v gives the right to epoch 7: %v", answer, granted)
		}
	})
}
