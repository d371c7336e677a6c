package agent

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"godwit.dev/godwit/api/client"
)

// maxServers bounds the servers that are known: those that were given, which stay,
// and those that others have named as the leader, of which the newest do.
const maxServers = 16

// Server is one of the replicas of the control plane.
type Server struct {
	URL    string
	Client *client.Client // with this host's certificate
}

// servers finds the way to the control plane. The session goes to the server
// that leads; the commit of a migration any of them answers.
type servers struct {
	dial func(url string) (*client.Client, error)

	mu    sync.Mutex
	all   []Server // first those that were given
	given int
	at    int // the one for the session
}

func newServers(given []Server, dial func(url string) (*client.Client, error)) *servers {
	return &servers{all: given, given: len(given), dial: dial}
}

func (s *servers) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// current is the server for the session.
func (s *servers) current() Server { return s.inTurn(0) }

// inTurn gives the servers one after the other, beginning with the session's.
func (s *servers) inTurn(turn int) Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[(s.at+turn)%len(s.all)]
}

// next turns the session to another server.
func (s *servers) next() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = (s.at + 1) % len(s.all)
}

// follow turns the session to the server that another one has named.
func (s *servers) follow(url string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, one := range s.all {
		if one.URL == url {
			s.at = i
			return nil
		}
	}
	if s.given >= maxServers {
		return fmt.Errorf("%s is not known, as %d others are", url, s.given)
	}
	c, err := s.dial(url)
	if err != nil {
		return err
	}
	if len(s.all) == maxServers {
		s.all = slices.Delete(s.all, s.given, s.given+1)
	}
	s.all = append(s.all, Server{URL: url, Client: c})
	s.at = len(s.all) - 1
	return nil
}

// decideWithin is how long one server may take for its answer to a commit. With
// others to ask it is shorter: the guest stands still meanwhile, and they give
// the same answer.
func (s *servers) decideWithin() time.Duration {
	if s.count() > 1 {
		return commitTurn
	}
	return commitWithin
}

// ledElsewhere is the word of a server that another one leads.
type ledElsewhere struct{ url string }

func (l *ledElsewhere) Error() string { return "another server leads: " + l.url }
