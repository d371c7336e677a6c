package volume

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// What a client has asked before it disconnects is answered.
func TestAnswersBeforeTheEnd(t *testing.T) {
	bothDialects(t, func(t *testing.T, c *testClient) {
		asked := append(requestBytes(request{command: cmdWrite, cookie: 7, length: 512}), make([]byte, 512)...)
		c.send(append(asked, requestBytes(request{command: cmdDisconnect})...))
		if a, err := c.answer(0); err != nil || a.cookie != 7 || a.errno != 0 {
			t.Errorf("%+v, %v", a, err)
		}
		c.wantClosed()
	})
}

// From a client that asks and asks, and takes no answer, nothing more is read
// after a while: what waits for it is bounded.
func TestClientThatTakesNoAnswers(t *testing.T) {
	v, err := openStore(t).find("v")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		a, err := v.attach(Peer{Operator: true}, 0, func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer a.detach()
		client, conn := net.Pipe()
		ended := make(chan error)
		go func() { ended <- newSession(conn, conn, a, dialect{}, &buffers{}).run() }()
		if _, err := client.Write(requestBytes(request{command: cmdFlush})); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // its worker is sending the answer, and the next reader reads
		const more = 10_000
		var all atomic.Bool
		go func() {
			_, err := client.Write(bytes.Repeat(requestBytes(request{command: 99}), more))
			all.Store(err == nil)
		}()
		synctest.Wait()
		if all.Load() {
			t.Errorf("%d requests were taken, and no answer", more)
		}
		if _, err := io.CopyN(io.Discard, client, (1+more)*16); err != nil {
			t.Error(err)
		}
		_ = client.Close()
		<-ended
	})
}
