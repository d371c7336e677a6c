package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/api/client"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// A server that takes the session and then says nothing keeps neither the
// agent from trying again nor its end waiting.
func TestSilentServer(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	a := &Agent{config: Config{Name: "h1", Network: hosts[0].agent.config.Network}, log: slog.New(slog.DiscardHandler)}
	c, _ := dialMute(t)
	ctx, end := context.WithCancelCause(t.Context())
	defer end(nil)
	stream, err := c.Agent.Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.greetWithin(ctx, end, stream, &godwitv1.Hello{Host: &godwitv1.Host{Name: "h1"}}, 20*time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("greeted: %v", err)
	}

	// Another server: whether the first has heard the agent is not known.
	c, peer := dialMute(t)
	ctx, end = context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.runSession(ctx, c) }()
	peer.await("session", func() bool { return len(peer.hellos) == 1 })
	enough := errors.New("enough")
	end(enough)
	select {
	case err := <-ended:
		if !errors.Is(err, enough) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the agent waits for the server for ever")
	}
}

// dialMute gives a client of a server that hears h1 and says nothing.
func dialMute(t *testing.T) (*client.Client, *peer) {
	t.Helper()
	s := newFakeServer(t)
	keeper := s.keeper(pki.Identity{Kind: pki.Host, Name: "h1"})
	c, err := client.Dial(client.Config{Server: s.url, TLS: keeper.ClientConfig(pki.Expect{Kind: pki.Server})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	peer := s.peer("h1")
	peer.mute = true
	return c, peer
}

// Two agents would take each other's sessions and act on the same instances.
func TestOneAgentForAFolder(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	second := hosts[0].agent.config
	if _, err := New(t.Context(), second); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("a second agent: %v", err)
	}
	hosts[0].stop()
	hosts[0].start()
}
