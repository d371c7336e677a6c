package store_test

import (
	"context"
	"log/slog"
	"testing"

	"godwit.dev/godwit/internal/store"
)

// sieve is a handler that keeps what would alarm an operator, and tells when
// a message has come.
type sieve struct {
	awaited string
	came    chan struct{} // of capacity 1
	alarms  chan string   // more than fit are dropped
}

func (s sieve) Enabled(context.Context, slog.Level) bool { return true }
func (s sieve) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s sieve) WithGroup(string) slog.Handler            { return s }

func (s sieve) Handle(_ context.Context, record slog.Record) error {
	if record.Level >= slog.LevelWarn {
		select {
		case s.alarms <- record.Message:
		default:
		}
	}
	if record.Message == s.awaited {
		select {
		case s.came <- struct{}{}:
		default:
		}
	}
	return nil
}

// The first start on an empty folder is the one that a new user sees: nothing
// of it may look like a fault. etcd's work at a start ends with the message
// that is awaited.
func TestFirstStartIsQuiet(t *testing.T) {
	t.Parallel()
	log := sieve{awaited: "updated storage version", came: make(chan struct{}, 1), alarms: make(chan string, 16)}
	config := embeddedConfig(t.TempDir())
	config.Logger = slog.New(log)
	s, err := store.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, nil, store.Put("a", nil))
	<-log.came
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for range len(log.alarms) {
		t.Errorf("logged %q", <-log.alarms)
	}
}
