package main

import (
	"go/format"
	"os"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/qmp/schema"
)

// TestGeneratedIsCurrent fails when the schema, the list or the generator has
// changed and go generate was not run.
func TestGeneratedIsCurrent(t *testing.T) {
	s, err := readSchema("../testdata/schema/10.0.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.Open("wanted.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	w, err := readWanted(list)
	if err != nil {
		t.Fatal(err)
	}
	source, err := generate(s, w)
	if err != nil {
		t.Fatal(err)
	}
	want, err := format.Source(source)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../zz_generated.go")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("zz_generated.go is not what the generator writes: run go generate ./internal/qmp")
	}
}

const small = `[
	{"name":"set","meta-type":"command","arg-type":"1","ret-type":"0"},
	{"name":"0","meta-type":"object","members":[]},
	{"name":"1","meta-type":"object","tag":"kind","members":[{"name":"kind","type":"2"}],
	 "variants":[{"case":"a","type":"3"},{"case":"b","type":"4"}]},
	{"name":"2","meta-type":"enum","values":["a","b"]},
	{"name":"3","meta-type":"object","members":[{"name":"x","type":"int"},{"name":"both","type":"int"}]},
	{"name":"4","meta-type":"object","members":[{"name":"y-max","type":"[str]"},{"name":"both","type":"str"},{"name":"either","type":"5"}]},
	{"name":"5","meta-type":"alternate","members":[{"type":"str"},{"type":"1"}]},
	{"name":"int","meta-type":"builtin","json-type":"int"},
	{"name":"str","meta-type":"builtin","json-type":"string"},
	{"name":"[str]","meta-type":"array","element-type":"str"}
]`

func TestGenerate(t *testing.T) {
	for name, tt := range map[string]struct {
		list string
		has  []string
		err  string
	}{
		"a union": {"command set\ntype set.kind SetKind", []string{
			"func Set(ctx context.Context, e Executor, args SetArgs) error",
			"Kind SetKind `json:\"kind\"`",
			"X *int64 `json:\"x,omitempty\"`",
			"YMax []string `json:\"y-max,omitempty\"`",
			"Both json.RawMessage `json:\"both,omitempty\"`", // of two types
			"Either *string `json:\"either,omitempty\"`",     // always writable as the string
			`SetKindA SetKind = "a"`,
		}, ""},
		"one variant":            {"command set\nvariants set a", []string{"Kind string", "Both *int64"}, ""},
		"unknown arguments":      {"open set", []string{"args map[string]any"}, ""},
		"no such command":        {"command nonesuch", nil, "not in the schema"},
		"a path leading nowhere": {"command set\ntype set.z Z", nil, "leads there"},
		"no such line":           {"commands set", nil, "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := schema.Parse([]byte(small))
			if err != nil {
				t.Fatal(err)
			}
			w, err := readWanted(strings.NewReader(tt.list))
			var source []byte
			if err == nil {
				source, err = generate(s, w)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			for _, want := range tt.has {
				if !strings.Contains(string(source), want) {
					t.Errorf("no %q in:\n%s", want, source)
				}
			}
		})
	}
}

func TestGoName(t *testing.T) {
	for name, want := range map[string]string{
		"migrate_cancel": "MigrateCancel", "query-cpu-model-expansion": "QueryCPUModelExpansion",
		"tls-creds-x509": "TLSCredsX509", "NIC_RX_FILTER_CHANGED": "NICRxFilterChanged", "ram": "RAM",
	} {
		if got := goName(name); got != want {
			t.Errorf("goName(%q) = %q, want %q", name, got, want)
		}
	}
}
