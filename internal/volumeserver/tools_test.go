package volumeserver

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

const diskSize = 16 * fleet.MiB

// tool runs a program to its end and gives what it prints; it must succeed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := tryTool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return output
}

func tryTool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Skip("needs " + name + ", which make setup installs")
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = t.TempDir() // fio leaves a file
	// nbdsh needs the Python of the system, which has libnbd's module.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"))
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// overTLS gives QEMU's arguments for an export, as a host.
func (l *lab) overTLS(host, export string) (object, image string) {
	l.t.Helper()
	dir := l.qemuCredentials(pki.Identity{Kind: pki.Host, Name: host})
	_, port, err := net.SplitHostPort(l.nbd.String())
	if err != nil {
		l.t.Fatal(err)
	}
	return "tls-creds-x509,id=tls,endpoint=client,dir=" + dir,
		fmt.Sprintf("driver=nbd,host=127.0.0.1,port=%s,export=%s,tls-creds=tls,tls-hostname=%s", port, export, pki.VolumeServerName("v1"))
}

// QEMU's programs use a volume over TLS by the lease of their host, and see
// each other's writes.
func TestQEMUOverTLS(t *testing.T) {
	l := newLab(t)
	l.create("v", diskSize)
	l.grant("v", "h1", 7)
	host := l.member(pki.Identity{Kind: pki.Host, Name: "h1"})
	if _, err := host.Activate(t.Context(), &godwitv1.ActivateLeasesRequest{Volumes: []string{"v"}, Epoch: 7, Key: secret}); err != nil {
		t.Fatal(err)
	}
	object, image := l.overTLS("h1", "v@7")
	output := tool(t, "qemu-io", "--object", object, "--image-opts", image,
		"-c", "write -P 0x5a 1M 3M", "-c", "write -f -P 0x5b 8M 512", "-c", "aio_write -P 0x5c 9M 64k", "-c", "aio_flush",
		"-c", "write -z 2M 512k", "-c", "write -z -u 2560k 512k", "-c", "discard 3M 512k", "-c", "flush",
		"-c", "read -P 0x5a 1M 1M", "-c", "read -P 0 2M 1M", "-c", "read -P 0x5a 3584k 512k", "-c", "read -P 0x5b 8M 512", "-c", "read -P 0x5c 9M 64k")
	if strings.Contains(output, "failed") {
		t.Errorf("it says:\n%s", output)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	tool(t, "qemu-img", "convert", "--object", object, "--image-opts", image, "-O", "raw", copied)
	if got := tool(t, "qemu-img", "compare", "--object", object, "--image-opts", image, "driver=raw,file.driver=file,file.filename="+copied); !strings.Contains(got, "identical") {
		t.Error(got)
	}
	if got := tool(t, "qemu-img", "map", "--object", object, "--image-opts", image, "--output=json"); !strings.Contains(got, `"data": false`) || !strings.Contains(got, `"data": true`) {
		t.Errorf("holes and data are not told apart: %s", got)
	}
	for name, export := range map[string]string{"another host's": "v@7", "no lease": "v@8"} {
		object, image := l.overTLS("h2", export)
		if got, err := tryTool(t, "qemu-io", "--object", object, "--image-opts", image, "-c", "read 0 512"); err == nil || !strings.Contains(got, "host h2 has no lease") {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
}

// Without TLS nothing is told by TCP.
func TestQEMUWithoutTLS(t *testing.T) {
	l := newLab(t)
	if got, err := tryTool(t, "qemu-img", "info", "nbd://"+l.nbd.String()+"/v"); err == nil || !strings.Contains(got, "TLS") {
		t.Errorf("%v\n%s", err, got)
	}
}

func (l *lab) uri(volume string) string {
	return "nbd+unix:///" + volume + "?socket=" + filepath.Join(l.run, nbdSocket)
}

// libnbd's programs, by the operators' socket.
func TestLibnbd(t *testing.T) {
	l := newLab(t)
	l.create("v", diskSize)
	l.create("w", diskSize)
	source := filepath.Join(t.TempDir(), "source")
	content := make([]byte, diskSize)
	for i := range content[:5<<20] {
		content[i] = byte(i >> 9)
	}
	if err := os.WriteFile(source, content, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", "--connections=4", "--requests=32", "--flush", source, l.uri("v"))
	tool(t, "nbdcopy", "--connections=4", l.uri("v"), l.uri("w"))
	back := filepath.Join(t.TempDir(), "back")
	tool(t, "nbdcopy", l.uri("w"), back)
	if got, err := os.ReadFile(back); err != nil || string(got) != string(content) {
		t.Errorf("another content came back, %v", err)
	}
	if got := tool(t, "nbdinfo", "--list", l.uri("v")); !strings.Contains(got, `export="v"`) || !strings.Contains(got, `export="w"`) {
		t.Error(got)
	}
	for _, can := range []string{"connect", "flush", "fua", "multi-conn", "trim", "zero", "df", "cache", "fast-zero", "structured-reply"} {
		tool(t, "nbdinfo", "--can", can, l.uri("v"))
	}
	if got := strings.TrimSpace(tool(t, "nbdinfo", "--size", l.uri("v"))); got != fmt.Sprint(uint64(diskSize)) {
		t.Error(got)
	}
	tool(t, "nbdinfo", "--map", l.uri("v"))
	tool(t, "nbdsh", "-u", l.uri("v"), "-c", nbdScript)
}

// nbdScript asks for what the programs do not: each command with each flag,
// requests in flight on two connections, and what must be refused.
const nbdScript = `
size = h.get_size()
h.set_strict_mode(0)
def refused(errnum, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == errnum, (error, errnum)
    else:
        assert False, (call, args)
import errno
h.pwrite(b"\x11" * 65536, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(4096, 12288, nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 20480, nbd.CMD_FLAG_FUA)
h.cache(65536, 0)
h.flush()
assert h.pread(4096, 0) == b"\x11" * 4096
assert h.pread(4096, 4096, nbd.CMD_FLAG_DF) == bytes(4096)
assert h.pread(32 << 20 if size > 32 << 20 else size, 0)
chunks = []
h.pread_structured(8192, 0, lambda data, offset, status, err: chunks.append((offset, len(data))))
assert sum(length for _, length in chunks) == 8192
refused(errno.ENOSPC, h.pwrite, b"x", size)
refused(errno.EINVAL, h.pread, 1, size)
refused(errno.ENOSPC, h.zero, 2, size - 1)
refused(errno.EINVAL, h.trim, 2, size - 1)
refused(errno.EINVAL, h.flush, nbd.CMD_FLAG_NO_HOLE)
refused(errno.EINVAL, h.pread, 33 << 20, 0)
other = nbd.NBD()
other.connect_uri(h.get_uri())
assert h.can_multi_conn() and other.can_multi_conn()
for i in range(64):
    (h, other)[i % 2].aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 4096), i * 4096)
for one in (h, other):
    while one.aio_in_flight() > 0:
        one.poll(-1)
other.flush()
for i in range(64):
    assert (other, h)[i % 2].pread(4096, i * 4096) == bytes([i]) * 4096
other.shutdown()
`

// fio writes at random, 32 requests deep, and checks what it reads back.
func TestFio(t *testing.T) {
	l := newLab(t)
	l.create("v", diskSize)
	tool(t, "fio", "--name=check", "--ioengine=nbd", "--uri="+l.uri("v"), "--rw=randwrite", "--bs=4k", "--iodepth=32",
		"--size="+fmt.Sprint(uint64(diskSize)), "--verify=crc32c", "--fsync=256", "--output-format=terse")
}
