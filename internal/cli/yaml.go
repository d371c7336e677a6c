package cli

import (
	"errors"
	"fmt"
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
	faults []fleet.FieldError
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
	d := &document{}
	file, err := parser.ParseBytes(data, 0)
	if syntax, ok := errors.AsType[yaml.Error](err); ok {
		d.fault(syntax.GetToken().Position.Line, "", syntax.GetMessage())
		return d
	}
	switch {
	case err != nil:
		d.faults = append(d.faults, fleet.FieldError{Path: "document", Problem: err.Error()})
	case len(file.Docs) > 1:
		d.faults = append(d.faults, fleet.FieldError{Path: "document", Problem: "there is more than one in the file"})
	case len(file.Docs) == 0 || file.Docs[0].Body == nil:
		d.faults = append(d.faults, fleet.FieldError{Path: "document", Problem: "it is empty"})
	default:
		d.root = file.Docs[0].Body
	}
	return d
}

func (d *document) fault(line int, path, problem string) {
	where := "line " + strconv.Itoa(line)
	if path != "" {
		where += ": " + path
	}
	d.faults = append(d.faults, fleet.FieldError{Path: where, Problem: problem})
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
			item(value, fmt.Sprintf("%s[%d]", path, i))
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
