package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/demo"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volume"
)

const (
	leaseChanges = 20
	leaseDepth   = 32
	leaseFlows   = 2000 // answers, until the writer is at it
	writeSize    = 4096
)

// measureLeases activates one epoch after the other while the one before has 32
// writes in flight, and gives how long each call took.
func measureLeases(ctx context.Context, b *blocks) (demo.Spread, error) {
	keeper, err := pki.OpenKeeper(b.in("host"), nil, nil)
	if err != nil {
		return demo.Spread{}, err
	}
	config := keeper.ClientConfig(pki.Expect{Kind: pki.Volume, Name: volumeServer})
	host, err := client.DialVolumeServer(client.Config{Server: "https://" + b.address, TLS: config})
	if err != nil {
		return demo.Spread{}, err
	}
	defer host.Close()
	var took []float64
	var before *leaseWriter
	secret := []byte("of these changes of the lease")
	for epoch := uint64(1); epoch <= leaseChanges+1; epoch++ {
		grant := &godwitv1.GrantLeaseRequest{Volume: volumeName, Epoch: epoch, Host: "h1", KeyHash: string(volume.HashKey(secret))}
		if _, err := b.control.Grant(ctx, grant); err != nil {
			return demo.Spread{}, err
		}
		begun := time.Now()
		request := &godwitv1.ActivateLeasesRequest{Volumes: []string{volumeName}, Epoch: epoch, Key: secret}
		if _, err := host.Activate(ctx, request); err != nil {
			return demo.Spread{}, err
		}
		if before != nil { // the first has nobody before it
			took = append(took, float64(time.Since(begun))/float64(time.Millisecond))
			if err := before.end(); err != nil {
				return demo.Spread{}, err
			}
		}
		if before, err = b.writeBy(ctx, config, epoch); err != nil {
			return demo.Spread{}, err
		}
	}
	_ = before.conn.Close()
	return demo.SpreadOf(took), <-before.ended
}

// leaseWriter writes by the lease of an epoch until it is cut.
type leaseWriter struct {
	conn    net.Conn
	slots   chan struct{} // taken by the writes in flight
	flowing chan struct{} // closed when many were answered
	over    chan struct{} // closed when nothing is received any more
	ended   chan error
}

// writeBy connects over TLS, as a host's QEMU does, and waits until 32 writes at
// a time are answered.
func (b *blocks) writeBy(ctx context.Context, config *tls.Config, epoch uint64) (*leaseWriter, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", b.nbd)
	if err != nil {
		return nil, err
	}
	secure, err := enterExport(ctx, conn, config, fmt.Sprintf("%s@%d", volumeName, epoch))
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w := &leaseWriter{
		conn: secure, slots: make(chan struct{}, leaseDepth), flowing: make(chan struct{}),
		over: make(chan struct{}), ended: make(chan error, 1),
	}
	go w.send(epoch)
	go func() { defer close(w.over); w.ended <- w.receive() }()
	select {
	case <-w.flowing:
		return w, nil
	case err := <-w.ended:
		return nil, err
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), conn.Close())
	}
}

// enterExport negotiates by NBD's doc/proto.md: STARTTLS and EXPORT_NAME, and so
// simple replies.
func enterExport(ctx context.Context, conn net.Conn, config *tls.Config, export string) (net.Conn, error) {
	option := func(kind uint32, data string) []byte {
		b := binary.BigEndian.AppendUint32([]byte("IHAVEOPT"), kind)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	const greeting, flags, ack, info = 18, 3, 20, 10 // bytes, but for the flags: fixed newstyle, no zeroes
	if _, err := conn.Write(append([]byte{0, 0, 0, flags}, option(5, "")...)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, make([]byte, greeting+ack)); err != nil {
		return nil, err
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if _, err := secure.Write(option(1, export)); err != nil {
		return nil, err
	}
	_, err := io.ReadFull(secure, make([]byte, info))
	return secure, err
}

func (w *leaseWriter) send(epoch uint64) {
	request := make([]byte, 28+writeSize)
	binary.BigEndian.PutUint32(request, 0x25609513)
	request[7] = 1 // WRITE
	binary.BigEndian.PutUint32(request[24:], writeSize)
	for i := epoch; ; i++ {
		binary.BigEndian.PutUint64(request[16:], i*7919%uint64(benchVolume/writeSize)*writeSize)
		select {
		case w.slots <- struct{}{}:
		case <-w.over:
			return
		}
		if _, err := w.conn.Write(request); err != nil {
			return
		}
	}
}

// receive gives nil when the connection is cut after writes were answered.
func (w *leaseWriter) receive() error {
	var reply [16]byte
	for n := 1; ; n++ {
		if _, err := io.ReadFull(w.conn, reply[:]); err != nil {
			if n <= leaseFlows {
				return fmt.Errorf("the writer was cut after %d answers: %w", n-1, err)
			}
			return nil
		}
		if code := binary.BigEndian.Uint32(reply[4:]); code != 0 && n <= leaseFlows {
			return fmt.Errorf("a write was answered with error %d", code)
		}
		if n == leaseFlows {
			close(w.flowing)
		}
		<-w.slots
	}
}

// end waits until the writer has seen that it is cut.
func (w *leaseWriter) end() error {
	err := <-w.ended
	_ = w.conn.Close() // it is cut
	return err
}
