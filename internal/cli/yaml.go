package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"godwit.dev/godwit/internal/fleet"
)

// document reads one YAML document strictly. Unlike a decoder it does not end
// at the first fault but gathers all of them, each with its line and path.
type document struct {
	root   node
	faults []fault
	lines  map[string]int // of the fields that were read, by path
}

// fault is one thing that is wrong at a path. Line is zero for what has none.
type fault struct {
	line          int
	path, problem string
}

type node = ast.Node

// read takes the value at a path of the document.
type read func(at node, path string)

// fields are the keys that a mapping may have.
type fields []struct {
	name string
	read read
}

// parseDocument records a syntax error as a fault and leaves root nil, which
// the methods below accept.
func parseDocument(data []byte) *document {
	d := &document{lines: map[string]int{}}
	file, err := parser.ParseBytes(data, 0)
	if syntax, ok := errors.AsType[yaml.Error](err); ok {
		d.fault(syntax.GetToken().Position.Line, "", syntax.GetMessage())
		return d
	}
	switch {
	case err != nil:
		d.fault(0, "document", err.Error())
	case len(file.Docs) > 1:
		d.fault(0, "document", "there is more than one in the file")
	case len(file.Docs) == 0 || file.Docs[0].Body == nil:
		d.fault(0, "document", "it is empty")
	default:
		d.root = file.Docs[0].Body
	}
	return d
}

func (d *document) fault(line int, path, problem string) {
	d.faults = append(d.faults, fault{line, path, problem})
}

// unreadable tells that nothing of the document could be read as fields.
func (d *document) unreadable() bool {
	return d.root == nil || slices.ContainsFunc(d.faults, func(f fault) bool { return f.path == "" })
}

// blame adds what somebody else found wrong at a path, unless that follows
// from what is known to be wrong at the path or above it.
func (d *document) blame(path, problem string) {
	for _, known := range d.faults {
		below, within := strings.CutPrefix(path, known.path)
		if within && (below == "" || below[0] == '.' || below[0] == '[') {
			return
		}
	}
	d.fault(d.lineOf(path), path, problem)
}

// lineOf gives the line of a field, or of the nearest one around it.
func (d *document) lineOf(path string) int {
	for {
		if line, found := d.lines[path]; found {
			return line
		}
		end := strings.LastIndexAny(path, ".[")
		if end < 0 {
			return 0
		}
		path = path[:end]
	}
}

// fieldErrors gives the faults in the order of the document.
func (d *document) fieldErrors() (fields []fleet.FieldError) {
	inOrder := slices.SortedStableFunc(slices.Values(d.faults), func(a, b fault) int { return cmp.Compare(a.line, b.line) })
	for _, f := range inOrder {
		var where []string
		if f.line > 0 {
			where = append(where, "line "+strconv.Itoa(f.line))
		}
		if f.path != "" {
			where = append(where, f.path)
		}
		fields = append(fields, fleet.FieldError{Path: strings.Join(where, ": "), Problem: f.problem})
	}
	return fields
}

func (d *document) faultAt(at node, path, problem string) {
	d.fault(at.GetToken().Position.Line, path, problem)
}

// mapping reads the values of the known keys and reports all others.
func (d *document) mapping(at node, path string, known fields) {
	if at == nil {
		return
	}
	var entries []*ast.MappingValueNode
	switch typed := at.(type) {
	case *ast.MappingNode:
		entries = typed.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{typed}
	default:
		d.faultAt(at, path, "must be a mapping with "+known.names())
		return
	}
	for _, entry := range entries {
		name := entry.Key.GetToken().Value
		full := name
		if path != "" {
			full = path + "." + name
		}
		if take := known.find(name); take != nil {
			d.lines[full] = entry.Key.GetToken().Position.Line
			take(entry.Value, full)
			continue
		}
		d.faultAt(entry.Key, full, "unknown field; known are "+known.names())
	}
}

func (f fields) find(name string) read {
	for _, field := range f {
		if field.name == name {
			return field.read
		}
	}
	return nil
}

func (f fields) names() string {
	var names []string
	for _, field := range f {
		names = append(names, field.name)
	}
	return strings.Join(names, ", ")
}

// list reads each item of a sequence.
func (d *document) list(item read) read {
	return func(at node, path string) {
		sequence, ok := at.(*ast.SequenceNode)
		if !ok {
			d.faultAt(at, path, "must be a list")
			return
		}
		for i, value := range sequence.Values {
			full := fmt.Sprintf("%s[%d]", path, i)
			d.lines[full] = value.GetToken().Position.Line
			item(value, full)
		}
	}
}

// scalar gives the text of a plain value as it was written.
func (d *document) scalar(at node, path string) (text string, ok bool) {
	switch typed := at.(type) {
	case *ast.StringNode:
		return typed.Value, true
	case *ast.LiteralNode:
		return typed.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return at.GetToken().Value, true
	}
	d.faultAt(at, path, "must be a plain value")
	return "", false
}

func (d *document) text(to *string) read {
	return func(at node, path string) {
		if text, ok := d.scalar(at, path); ok {
			*to = text
		}
	}
}

func (d *document) int32(to *int32) read {
	return func(at node, path string) {
		text, ok := d.scalar(at, path)
		if !ok {
			return
		}
		value, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			d.faultAt(at, path, strconv.Quote(text)+" is not a whole number")
		}
		*to = int32(value)
	}
}

func (d *document) bool(to *bool) read {
	return func(at node, path string) {
		text, ok := d.scalar(at, path)
		if !ok {
			return
		}
		if text != "true" && text != "false" {
			d.faultAt(at, path, strconv.Quote(text)+" is neither true nor false")
		}
		*to = text == "true"
	}
}

func (d *document) bytes(to *uint64) read {
	return func(at node, path string) {
		text, ok := d.scalar(at, path)
		if !ok {
			return
		}
		amount, err := fleet.ParseBytes(text)
		if err != nil {
			d.faultAt(at, path, err.Error())
		}
		*to = uint64(amount)
	}
}
