package main

import (
	"fmt"
	"slices"
	"strings"

	"godwit.dev/godwit/internal/qmp/schema"
)

// raw is the type of what has no one Go type.
const raw = "json.RawMessage"

// goType gives the Go type for a schema type, writing it first if it is new.
func (g *generator) goType(typeName string, p place) (string, error) {
	entity := g.schema.Lookup(typeName)
	if typeName == "" {
		return raw, nil
	}
	if entity == nil {
		return "", fmt.Errorf("%s: type %q is not in the schema", p.path, typeName)
	}
	switch entity.Meta {
	case schema.MetaBuiltin:
		return builtin(entity, p)
	case schema.MetaArray:
		element, err := g.goType(entity.ElementType, p)
		return "[]" + element, err
	case schema.MetaEnum:
		return g.enum(entity, p)
	case schema.MetaAlternate:
		// What we write can always be written as the string, if it is a choice.
		isString := func(m schema.Member) bool { return m.Type == "str" }
		if p.argument && slices.ContainsFunc(entity.Members, isString) {
			return "string", nil
		}
		return raw, nil
	case schema.MetaObject:
		return g.object(entity, p)
	}
	return "", fmt.Errorf("%s: a %q is no type", p.path, entity.Meta)
}

func builtin(entity *schema.Entity, p place) (string, error) {
	switch entity.JSONType {
	case "string":
		return "string", nil
	case "boolean":
		return "bool", nil
	case "int":
		return "int64", nil
	case "number":
		return "float64", nil
	case "value", "null":
		if p.argument {
			return "any", nil
		}
		return raw, nil
	}
	return "", fmt.Errorf("%s: unknown JSON type %q", p.path, entity.JSONType)
}

// enum writes an enumeration that has a name in the list, with its constants.
func (g *generator) enum(entity *schema.Entity, p place) (string, error) {
	_, listed := g.wanted.names[p.path]
	_, known := g.names[entity.Name]
	if !listed && !known {
		return "string", nil
	}
	name, isNew, err := g.claim(entity.Name, p)
	if err != nil || !isNew {
		return name, err
	}
	fmt.Fprintf(&g.enums, "// %[1]s is the enumeration at %[2]s.\ntype %[1]s string\n\n", name, p.path)
	fmt.Fprintf(&g.enums, "// The values of %s.\nconst (\n", name)
	for _, value := range entity.Values {
		fmt.Fprintf(&g.enums, "%[1]s%[2]s %[1]s = %[3]q\n", name, goName(value), value)
	}
	g.enums.WriteString(")\n\n")
	return name, nil
}

// object writes a structure; a union becomes one with the members of all its
// variants.
func (g *generator) object(entity *schema.Entity, p place) (string, error) {
	name, isNew, err := g.claim(entity.Name, p)
	if err != nil || !isNew {
		return name, err
	}
	p.goName = name
	var body strings.Builder
	fmt.Fprintf(&body, "// %s is the structure at %s.\n", name, p.path)
	if entity.Tag != "" {
		fmt.Fprintf(&body, "// Which members it has depends on %s.\n", goName(entity.Tag))
	}
	fmt.Fprintf(&body, "type %s struct {\n", name)
	for _, member := range g.members(entity, p) {
		goType, err := g.goType(member.Type, p.member(member.Name))
		if err != nil {
			return "", err
		}
		tag := member.Name
		if member.Optional() {
			tag += ",omitempty"
			goType = optional(goType, g.names[member.Type] != "" && g.schema.Lookup(member.Type).Meta == schema.MetaEnum)
		}
		fmt.Fprintf(&body, "%s %s `json:\"%s\"`\n", goName(member.Name), goType, tag)
	}
	body.WriteString("}\n\n")
	g.types.WriteString(body.String())
	return name, nil
}

// optional gives the type of a member that may be absent: the zero value of a
// slice, of raw JSON and of an enumeration is none of their values.
func optional(goType string, enum bool) string {
	if enum || goType == raw || goType == "any" || strings.HasPrefix(goType, "[]") {
		return goType
	}
	return "*" + goType
}
