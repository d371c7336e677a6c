package cli_test

import (
	"bytes"
	"context"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/cli"
	"godwit.dev/godwit/internal/lab/etcdtls"
)

// What the command line alone shows to be wrong is refused as that, with what
// to do about it, before anything is opened or made.
func TestServerRefusesFlags(t *testing.T) {
	files, err := etcdtls.Make(t.TempDir(), netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	const cluster = "--etcd=https://127.0.0.1:1"
	for _, test := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"listen", []string{"--listen=x"}, 2, []string{`--listen: "x" is not HOST:PORT`, "hint: ", ":7443"}},
		{"listen on a name as port", []string{"--listen=0.0.0.0:https"}, 2, []string{"0.0.0.0:https", "no port within"}},
		{"listen beyond the ports", []string{"--listen=:70000"}, 2, []string{":70000", "no port within"}},
		{"listen on a URL", []string{"--listen=https://0.0.0.0:7443"}, 2, []string{"is not HOST:PORT"}},
		{"listen of an unset variable", []string{"--listen="}, 2, []string{"--listen is empty"}},
		{"folder of an unset variable", []string{"--data="}, 2, []string{"--data is empty"}},
		{"socket of an unset variable", []string{"--socket="}, 2, []string{"--socket is empty"}},
		{"authority of an unset variable", []string{cluster, "--etcd-ca="}, 2, []string{"--etcd-ca is empty"}},
		{"a long socket", []string{"--socket=/" + strings.Repeat("s", 120)}, 2, []string{"--socket", "121 bytes"}},
		{"level", []string{"--log=loud"}, 2, []string{"loud is not a level"}},
		{"etcd of an unset variable", []string{"--etcd="}, 2, []string{"--etcd: it is empty"}},
		{"etcd of nonsense", []string{"--etcd=x"}, 2, []string{`"x"`, "https://HOST:2379"}},
		{"certificates for the embedded etcd", []string{"--etcd-ca=" + files.CA}, 2, []string{"--etcd: it is missing"}},
		{"insecure for the embedded etcd", []string{"--etcd-insecure"}, 2, []string{"--etcd: it is missing"}},
		{"certificate without key", []string{cluster, "--etcd-cert=" + files.ClientCert}, 2, []string{"give both --etcd-cert and --etcd-key"}},
		{"key without certificate", []string{cluster, "--etcd-key=" + files.ClientKey}, 2, []string{"give both --etcd-cert and --etcd-key"}},
		{"no such authority", []string{cluster, "--etcd-ca=/nowhere/ca.pem"}, 2, []string{"/nowhere/ca.pem", "no such file"}},
		{"another's certificate", []string{cluster, "--etcd-cert=" + files.ClientCert, "--etcd-key=" + files.MemberKey}, 2,
			[]string{files.ClientCert, files.MemberKey, "hint: "}},
		{"plain text", []string{"--etcd=http://10.0.0.1:2379"}, 2, []string{"http://10.0.0.1:2379", "plain text", "hint: ", "https://", "--etcd-insecure"}},
		{"plain text with certificates", []string{"--etcd=http://127.0.0.1:1", "--etcd-ca=" + files.CA}, 2, []string{"does not use them"}},
		// What is right so far goes on to look for the cluster.
		{"nobody there", []string{cluster, "--etcd-ca=" + files.CA}, 5, []string{"127.0.0.1:1", "connection refused"}},
		{"nobody there in plain text", []string{"--etcd=http://127.0.0.1:1"}, 5, []string{"connection refused"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // should it serve after all
			defer cancel()
			dir := t.TempDir()
			data := filepath.Join(dir, "data")
			args := append([]string{"server", "--data=" + data, "--socket=" + filepath.Join(dir, "s"), "--listen=127.0.0.1:0"}, test.args...)
			var out bytes.Buffer
			app := &cli.App{In: strings.NewReader(""), Out: &out, Err: &out, Getenv: func(string) string { return "" }, Now: time.Now}
			if code := cli.Main(ctx, app, args); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			for _, words := range test.says {
				if !strings.Contains(out.String(), words) {
					t.Errorf("%q does not say %q", out.String(), words)
				}
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("it has made %v, %v", names(entries), err)
			}
		})
	}
}

func names(entries []fs.DirEntry) (names []string) {
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
