package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// source is one file of the module.
type source struct {
	path string // within the module
	file *ast.File
	set  *token.FileSet
}

func (s source) pkg() string  { return path.Dir(s.path) }
func (s source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

func parse(name string, content []byte) (source, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, content, parser.ParseComments|parser.SkipObjectResolution)
	return source{path: name, file: file, set: set}, err
}

// imported gives the paths that the file imports.
func (s source) imported() []string {
	var paths []string
	for _, spec := range s.file.Imports {
		p, _ := strconv.Unquote(spec.Path.Value) // the parser has seen to it
		paths = append(paths, p)
	}
	return paths
}

// begins says whether p is prefix or lies below it. A prefix that ends with a
// slash stands for what is below only.
func begins(p, prefix string) bool {
	return p == prefix || strings.HasPrefix(p, strings.TrimSuffix(prefix, "/")+"/")
}

func beginsAny(p string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return begins(p, prefix) })
}

// allowedImports finds the longest entry of the table for a package.
func allowedImports(pkg string) (allowed []string, found bool) {
	best := ""
	for entry, list := range imports {
		if begins(pkg, entry) && len(entry) > len(best) {
			best, allowed, found = entry, list, true
		}
	}
	return allowed, found
}

// check gives every way in which a file breaks the rules.
func check(s source) []string {
	faults := slices.Concat(checkImports(s), checkOwners(s), checkSize(s), checkInit(s))
	if slices.Contains(pure, s.pkg()) && !s.isTest() {
		faults = append(faults, checkPure(s)...)
	}
	if slices.Contains(simulated, s.pkg()) && !slices.Contains(realTime, s.path) && !s.isTest() {
		faults = append(faults, s.uses(bannedInSimulated, "is simulated")...)
	}
	return faults
}

func checkImports(s source) (faults []string) {
	allowed, found := allowedImports(s.pkg())
	if !found {
		return []string{"its package has no place in the table of imports"}
	}
	for _, p := range s.imported() {
		inner, ours := strings.CutPrefix(p, module)
		if ours && !s.isTest() && !beginsAny(inner, allowed) {
			faults = append(faults, fmt.Sprintf("imports %s; %s may import only %v", inner, s.pkg(), allowed))
		}
	}
	return faults
}

func checkOwners(s source) (faults []string) {
	for _, p := range s.imported() {
		for technology, packages := range owners {
			if begins(p, technology) && !beginsAny(s.pkg(), packages) {
				faults = append(faults, fmt.Sprintf("imports %s, which belongs to %v", p, packages))
			}
		}
	}
	return faults
}

func checkSize(s source) []string {
	if ast.IsGenerated(s.file) {
		return nil
	}
	if lines := s.set.File(s.file.Pos()).LineCount(); lines > maxLines {
		return []string{fmt.Sprintf("has %d lines, more than %d", lines, maxLines)}
	}
	return nil
}

func checkInit(s source) (faults []string) {
	if ast.IsGenerated(s.file) {
		return nil
	}
	for _, declaration := range s.file.Decls {
		if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			faults = append(faults, "has an init function")
		}
	}
	return faults
}

func checkPure(s source) (faults []string) {
	for _, p := range s.imported() {
		outside := strings.Contains(strings.SplitN(p, "/", 2)[0], ".") && !strings.HasPrefix(p, module)
		if outside || beginsAny(p, bannedInPure) && !slices.Contains(allowedInPure, p) {
			faults = append(faults, "is pure and imports "+p)
		}
	}
	ast.Inspect(s.file, func(node ast.Node) bool {
		switch node.(type) {
		case *ast.GoStmt:
			faults = append(faults, "is pure and starts a goroutine")
		case *ast.SelectStmt, *ast.ChanType:
			faults = append(faults, "is pure and uses channels")
		}
		return true
	})
	return append(faults, s.uses(bannedCalls, "is pure")...)
}

// uses gives each use of what is banned, by import path, in a file that is so.
func (s source) uses(banned map[string][]string, so string) (faults []string) {
	names := s.importNames()
	ast.Inspect(s.file, func(node ast.Node) bool {
		if n, ok := node.(*ast.SelectorExpr); ok {
			name, ok := n.X.(*ast.Ident)
			if ok && slices.Contains(banned[names[name.Name]], n.Sel.Name) {
				faults = append(faults, so+" and uses "+name.Name+"."+n.Sel.Name)
			}
		}
		return true
	})
	return faults
}

// importNames gives the path that each name of an import stands for.
func (s source) importNames() map[string]string {
	names := make(map[string]string)
	for i, p := range s.imported() {
		name := path.Base(p)
		if given := s.file.Imports[i].Name; given != nil {
			name = given.Name
		}
		names[name] = p
	}
	return names
}

func TestSourceKeepsTheRules(t *testing.T) {
	root := "../.."
	files := 0
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			hidden := strings.HasPrefix(entry.Name(), ".") && within != "."
			if hidden || entry.Name() == "testdata" || entry.Name() == "node_modules" || isOtherModule(name, within) {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		files++
		return checkFile(t, name, filepath.ToSlash(within))
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files were found: the rules are not being tested", files)
	}
}

func isOtherModule(dir, within string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil && within != "."
}

func checkFile(t *testing.T, name, within string) error {
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	s, err := parse(within, content)
	if err != nil {
		return err
	}
	for _, fault := range check(s) {
		t.Errorf("%s %s", within, fault)
	}
	return nil
}

// The rules see what they are there to see.
func TestRulesAreBroken(t *testing.T) {
	for name, test := range map[string]struct{ path, source, want string }{
		"clock":            {"internal/migration/x.go", `import "time"; var _ = time.Now()`, "time.Now"},
		"simulated clock":  {"internal/sim/x.go", `import "time"; var _ = time.Now()`, "time.Now"},
		"simulated wait":   {"internal/reconcile/x.go", `import "context"; var _ = context.WithTimeout`, "context.WithTimeout"},
		"clock as a value": {"internal/migration/x.go", `import "time"; var now = time.Now`, "time.Now"},
		"clock renamed":    {"internal/fleet/x.go", `import c "time"; var _ = c.Since`, "c.Since"},
		"goroutine":        {"internal/placement/x.go", `func f() { go f() }`, "goroutine"},
		"channel":          {"internal/predict/x.go", `var c chan int`, "channels"},
		"socket":           {"internal/campaign/x.go", `import "net/http"`, "net/http"},
		"logger":           {"internal/migration/x.go", `import "log/slog"`, "log/slog"},
		"chance":           {"internal/placement/x.go", `import "math/rand/v2"`, "math/rand/v2"},
		"library":          {"internal/fleet/x.go", `import "github.com/google/uuid"`, "uuid"},
		"upwards":          {"internal/fleet/x.go", `import "godwit.dev/godwit/internal/migration"`, "may import only"},
		"adapter":          {"internal/qemu/x.go", `import "godwit.dev/godwit/internal/network"`, "may import only"},
		"server and agent": {"internal/server/x.go", `import "godwit.dev/godwit/internal/agent"`, "may import only"},
		"agent and server": {"internal/agent/x.go", `import "godwit.dev/godwit/internal/server"`, "may import only"},
		"main":             {"cmd/godwit/x.go", `import "godwit.dev/godwit/internal/server"`, "may import only"},
		"like a prefix":    {"internal/network/x.go", `import "godwit.dev/godwit/internal/fleetwide"`, "may import only"},
		"etcd":             {"internal/server/x.go", `import "go.etcd.io/etcd/client/v3"`, "belongs to"},
		"etcd in a test":   {"internal/server/x_test.go", `import "go.etcd.io/etcd/client/v3"`, "belongs to"},
		"netlink":          {"internal/agent/x.go", `import "github.com/vishvananda/netlink"`, "belongs to"},
		"compression":      {"internal/agent/x.go", `import "github.com/klauspost/compress/zstd"`, "belongs to"},
		"sampling":         {"internal/pagesample/x.go", `import "godwit.dev/godwit/internal/qemu"`, "may import only"},
		"plots":            {"internal/server/x.go", `import "gonum.org/v1/plot/vg"`, "belongs to"},
		"init":             {"internal/agent/x.go", `func init() {}`, "init function"},
		"new package":      {"internal/helper/x.go", ``, "no place"},
		"too long":         {"internal/agent/x.go", strings.Repeat("\n", maxLines+1), "lines"},
	} {
		s, err := parse(test.path, []byte("package x; "+test.source))
		if err != nil {
			t.Fatal(err)
		}
		faults := check(s)
		if len(faults) != 1 || !strings.Contains(faults[0], test.want) {
			t.Errorf("%s: found %q, want one fault with %q", name, faults, test.want)
		}
	}
}

func TestRulesAreKept(t *testing.T) {
	for name, test := range map[string]struct{ path, source string }{
		"real time":      {"internal/sim/many.go", `import "time"; var _ = time.Now()`},
		"durations":      {"internal/migration/x.go", `import "time"; var _ = 3 * time.Second`},
		"addresses":      {"internal/fleet/x.go", `import "net/netip"`},
		"core":           {"internal/campaign/x.go", `import "godwit.dev/godwit/internal/placement"`},
		"qemu to qmp":    {"internal/qemu/x.go", `import "godwit.dev/godwit/internal/qmp"`},
		"test of a core": {"internal/migration/x_test.go", `import ("pgregory.net/rapid"; "os")`},
		"method init":    {"internal/agent/x.go", `type x int; func (x) init() {}`},
		"wiring":         {"internal/cli/x.go", `import ("godwit.dev/godwit/internal/server"; "godwit.dev/godwit/internal/agent")`},
		"generated": {"internal/qmp/x.go",
			"\n\n// Code generated by gen. DO NOT EDIT.\n" + strings.Repeat("\n", maxLines+1)},
	} {
		// The generator's mark has to stand before the package clause.
		mark, body := "", test.source
		if strings.Contains(body, "Code generated") {
			mark, body = body, ""
		}
		s, err := parse(test.path, []byte(mark+"package x; "+body))
		if err != nil {
			t.Fatal(err)
		}
		if faults := check(s); len(faults) != 0 {
			t.Errorf("%s: found %q", name, faults)
		}
	}
}
