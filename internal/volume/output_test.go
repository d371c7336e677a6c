package volume

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// synced is what a program has printed so far.
type synced struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed at the next output; nil when nobody waits
}

func (s *synced) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
	return s.text.Write(p)
}

func (s *synced) look() (text string, more <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		s.more = make(chan struct{})
	}
	return s.text.String(), s.more
}

// waitFor returns when the program has printed a text.
func (s *synced) waitFor(t *testing.T, want string) {
	t.Helper()
	limit := time.After(answerWithin)
	for {
		text, more := s.look()
		if strings.Contains(text, want) {
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("it did not print %q, but:\n%s", want, text)
		}
	}
}
