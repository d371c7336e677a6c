package pki

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// QEMU itself reads the files, verifies a peer and compares its subject: its
// network block device server with tls-creds-x509 and authz-simple.
func TestQEMUAcceptsOnlyTheExpectedHost(t *testing.T) {
	program, err := exec.LookPath("qemu-nbd")
	if err != nil {
		t.Skip("qemu-nbd is missing (package qemu-utils)")
	}
	a, stranger := newAuthority(t), newAuthority(t)
	creds := t.TempDir()
	if err := enrolled(t, a, Identity{Host, "target"}, 0).WriteQEMUCreds(creds); err != nil {
		t.Fatal(err)
	}
	address := startNBD(t, program, creds, Identity{Host, "h1"}.DistinguishedName())
	for name, test := range map[string]struct {
		authority *Authority
		id        Identity
		accepted  bool
	}{
		"the expected host":    {a, Identity{Host, "h1"}, true},
		"another host":         {a, Identity{Host, "h2"}, false},
		"a user of that name":  {a, Identity{User, "h1"}, false},
		"another fleet's host": {stranger, Identity{Host, "h1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := enrolled(t, test.authority, test.id, 0)
			pair, err := tls.X509KeyPair(c.Certificate, c.Key)
			if err != nil {
				t.Fatal(err)
			}
			roots := keeperOf(t, enrolled(t, a, Identity{Host, "any"}, 0), nil).current.Load().roots
			err = listExports(address, &tls.Config{
				RootCAs: roots, ServerName: "target", MinVersion: tls.VersionTLS13,
				Certificates: []tls.Certificate{pair},
			})
			if (err == nil) != test.accepted {
				t.Errorf("accepted: %v (%v), want %v", err == nil, err, test.accepted)
			}
		})
	}
}

// startNBD runs qemu-nbd on a listener that is made here, so that there is
// nothing to wait for. It ends with the test.
func startNBD(t *testing.T, program, creds, subject string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	// Socket activation needs the process's own id, hence the shell.
	command := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`, program,
		"--object", "tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir="+creds,
		"--object", "authz-simple,id=peer,identity="+strings.ReplaceAll(subject, ",", ",,"),
		"--tls-creds", "tls", "--tls-authz", "peer", "--persistent", "--format", "raw", image)
	command.ExtraFiles = []*os.File{socket} // descriptor 3, the first of activation
	var output strings.Builder
	command.Stdout, command.Stderr = &output, &output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if t.Failed() {
			t.Log(output.String())
		}
	})
	return listener.Addr().String()
}

// Constants of the NBD protocol (doc/proto.md of NetworkBlockDevice/nbd).
const (
	nbdOptionMagic  = 0x49484156454F5054
	nbdReplyMagic   = 0x3e889045565a9
	nbdStartTLS     = 5
	nbdList         = 3
	nbdAck          = 1
	nbdReplyServer  = 2
	nbdFixedNoZeros = 3
)

// listExports negotiates TLS with an NBD server and asks for its exports.
func listExports(address string, config *tls.Config) error {
	plain, err := net.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := plain.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.ReadFull(plain, make([]byte, 18)); err != nil {
		return err
	}
	if err := binary.Write(plain, binary.BigEndian, uint32(nbdFixedNoZeros)); err != nil {
		return err
	}
	if err := option(plain, nbdStartTLS, nbdAck); err != nil {
		return err
	}
	secure := tls.Client(plain, config)
	if err := secure.Handshake(); err != nil {
		return err
	}
	return option(secure, nbdList, nbdReplyServer)
}

func option(stream io.ReadWriter, number, wantReply uint32) error {
	request := struct {
		Magic          uint64
		Option, Length uint32
	}{nbdOptionMagic, number, 0}
	if err := binary.Write(stream, binary.BigEndian, request); err != nil {
		return err
	}
	var reply struct {
		Magic                uint64
		Option, Type, Length uint32
	}
	if err := binary.Read(stream, binary.BigEndian, &reply); err != nil {
		return err
	}
	if reply.Magic != nbdReplyMagic || reply.Type != wantReply {
		return errors.New("the server refused the option")
	}
	return nil
}
