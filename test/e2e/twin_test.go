package e2e

import (
	"strings"
	"testing"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// testTwin runs a second agent from a copy of a host's folder while a VM of that
// host moves there and back: the agent that was first keeps the host, the other
// says what is wrong, and neither the VM nor its client notices.
func testTwin(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	twin, err := f.Twin(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := twin.Kill(); err != nil {
			t.Error(err)
		}
	}()
	awaitLog(t, twin, "another agent runs this host: it calls from ", 1)
	for _, target := range []string{"h2", "h1"} {
		c := call(t, f, g, probe.UDPConfig{Rate: 500})
		migrate(t, f, g, target, "succeeded")
		c.end(t)
	}
	said, err := twin.Log()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(said, "session open") || !strings.Contains(said, "godwit host token NAME") {
		t.Errorf("the second agent said:\n%s", said)
	}
}
