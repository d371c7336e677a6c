package volume

import (
	"crypto/tls"
	"log/slog"
	"net"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

// member gives the certificate of a member of a fleet.
func member(t *testing.T, authority *pki.Authority, id pki.Identity) *pki.Keeper {
	t.Helper()
	key, request, err := pki.NewKeyAndRequest(id.Name)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.Sign(request, id, pki.Names{}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := (pki.Credentials{Certificate: cert, Key: key, Authority: authority.CertificatePEM()}).Save(dir); err != nil {
		t.Fatal(err)
	}
	keeper, err := pki.OpenKeeper(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return keeper
}

// Before TLS nothing is told and nothing is kept; with it the certificate says
// who the client is.
func TestTLSComesFirst(t *testing.T) {
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	store := openStore(t)
	hand(t, store, 1, "h1")
	own, host := member(t, authority, pki.Identity{Kind: pki.Volume, Name: "v1"}), member(t, authority, pki.Identity{Kind: pki.Host, Name: "h1"})
	server := NewServer(Config{Volumes: store, TLS: own.ServerConfig(), Log: slog.New(slog.DiscardHandler),
		Identify: func(state tls.ConnectionState) (Peer, error) {
			id, err := pki.FromConnectionState(state)
			return Peer{Host: fleet.HostName(id.Name)}, err
		}})
	address := listen(t, "tcp", "127.0.0.1:0", server.Serve)
	connect := func() *testClient {
		conn, err := net.Dial("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		return greet(t, conn)
	}
	c := connect()
	for name, test := range map[string]struct {
		kind optionKind
		data []byte
		want replyKind
	}{
		"list":            {optList, nil, repErrTLSRequired},
		"info":            {optInfo, infoData("v@1"), repErrTLSRequired},
		"go":              {optGo, infoData("w"), repErrTLSRequired},
		"structured":      {optStructured, nil, repErrTLSRequired},
		"STARTTLS's data": {optStartTLS, []byte{0}, repErrInvalid},
	} {
		if last := c.last(test.kind, test.data); last != test.want {
			t.Errorf("%s: %#x, want %#x", name, last, test.want)
		}
	}
	c.startTLS(host.ClientConfig(pki.Expect{Kind: pki.Volume, Name: "v1"}))
	if last := c.last(optStartTLS, nil); last != repErrInvalid {
		t.Errorf("TLS in TLS: %#x", last)
	}
	c.enter("v@1", true)
	// Replies of all lengths, alone and together, pass through TLS as they are.
	if errno := c.write(0, 7, 1<<20, flagFUA); errno != 0 {
		t.Error(errno)
	}
	for _, length := range []int{1, 4096, joinMax, joinMax + 1, 1 << 20} {
		c.wantBytes(0, 7, length)
	}
	for range 64 {
		c.send(requestBytes(request{command: cmdRead, length: 4096}))
	}
	for range 64 {
		if got, err := c.answer(4096); err != nil || len(got.data) != 4096 || got.data[4095] != 7 {
			t.Fatalf("%v, %d bytes", err, len(got.data))
		}
	}
	mixedLengths(t, c)
	open := connect()
	open.send(optionBytes(optExportName, []byte("v@1")))
	open.wantClosed()
}
