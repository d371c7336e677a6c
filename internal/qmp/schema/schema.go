// Package schema reads the reply of query-qmp-schema, QEMU's description of
// its own protocol (QEMU docs/devel/qapi-code-gen.rst, "Client JSON Protocol
// introspection"), and answers what a QEMU knows. Features are found here and
// never by version number: distributions backport and remove.
//
// A Schema is immutable after Parse; any number of goroutines may use it.
package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Meta is the kind of an Entity.
type Meta string

// The kinds of entities.
const (
	MetaCommand   Meta = "command"
	MetaEvent     Meta = "event"
	MetaObject    Meta = "object"
	MetaArray     Meta = "array"
	MetaEnum      Meta = "enum"
	MetaAlternate Meta = "alternate"
	MetaBuiltin   Meta = "builtin"
)

// Entity is one definition. Names of commands and events are QEMU's; names of
// types are numbers that mean nothing outside the one reply.
type Entity struct {
	Name        string    `json:"name"`
	Meta        Meta      `json:"meta-type"`
	ArgType     string    `json:"arg-type"`     // command, event
	RetType     string    `json:"ret-type"`     // command
	AllowOOB    bool      `json:"allow-oob"`    // command
	Members     []Member  `json:"members"`      // object, alternate, enum (names only)
	Tag         string    `json:"tag"`          // object: the member that selects the variant
	Variants    []Variant `json:"variants"`     // object
	ElementType string    `json:"element-type"` // array
	Values      []string  `json:"values"`       // enum
	JSONType    string    `json:"json-type"`    // builtin
}

// Member is one member of an object, or one choice of an alternate.
type Member struct {
	Name    string          `json:"name"`
	Type    string          `json:"type"`
	Default json.RawMessage `json:"default"` // present (null) when optional
}

// Optional tells whether the member may be left out.
func (m Member) Optional() bool { return m.Default != nil }

// Variant is the object type whose members join when the tag has this value.
type Variant struct {
	Case string `json:"case"`
	Type string `json:"type"`
}

// Schema is the index over one QEMU's entities.
type Schema struct {
	entities map[string]*Entity
}

// Parse reads the value that query-qmp-schema returns.
func Parse(reply []byte) (*Schema, error) {
	var entities []*Entity
	if err := json.Unmarshal(reply, &entities); err != nil {
		return nil, fmt.Errorf("QMP schema: %w", err)
	}
	s := &Schema{entities: make(map[string]*Entity, len(entities))}
	for _, entity := range entities {
		if entity == nil {
			return nil, errors.New("QMP schema: a definition is null")
		}
		if _, twice := s.entities[entity.Name]; twice {
			return nil, fmt.Errorf("QMP schema: %q is defined twice", entity.Name)
		}
		s.entities[entity.Name] = entity
	}
	return s, nil
}

// Lookup finds an entity by the name it has in this reply, nil if there is none.
func (s *Schema) Lookup(name string) *Entity { return s.entities[name] }

// HasCommand tells whether QEMU has the command.
func (s *Schema) HasCommand(name string) bool { return s.has(name, MetaCommand) }

// HasEvent tells whether QEMU can emit the event.
func (s *Schema) HasEvent(name string) bool { return s.has(name, MetaEvent) }

func (s *Schema) has(name string, meta Meta) bool {
	entity := s.entities[name]
	return entity != nil && entity.Meta == meta
}

// HasArgument tells whether the command takes the argument. A path such as
// "migrate-set-capabilities", "capabilities.capability" descends into objects
// and the elements of arrays; variants of a union count as its members.
func (s *Schema) HasArgument(command, path string) bool {
	return len(s.argument(command, path)) > 0
}

// HasEnumValue tells whether the enumeration at the argument path, which is
// written as for HasArgument, has the value.
func (s *Schema) HasEnumValue(command, path, value string) bool {
	return slices.ContainsFunc(s.argument(command, path), func(e *Entity) bool {
		return e.Meta == MetaEnum && slices.Contains(e.Values, value)
	})
}

// HasResult tells whether the command's result has the member; the path is
// written as for HasArgument.
func (s *Schema) HasResult(command, path string) bool {
	entity := s.entities[command]
	return entity != nil && entity.Meta == MetaCommand && len(s.descend(entity.RetType, path)) > 0
}

// HasMigrationCapability tells whether migrate-set-capabilities knows the name.
func (s *Schema) HasMigrationCapability(name string) bool {
	return s.HasEnumValue("migrate-set-capabilities", "capabilities.capability", name)
}

func (s *Schema) argument(command, path string) []*Entity {
	entity := s.entities[command]
	if entity == nil || entity.Meta != MetaCommand {
		return nil
	}
	return s.descend(entity.ArgType, path)
}

// descend gives every type that the member path can have; a union may have
// members of one name and different types.
func (s *Schema) descend(typeName, path string) []*Entity {
	types := []string{typeName}
	for name := range strings.SplitSeq(path, ".") {
		var next []string
		for _, t := range types {
			for _, member := range s.AllMembers(s.element(t)) {
				if member.Name == name {
					next = append(next, member.Type)
				}
			}
		}
		types = next
	}
	var found []*Entity
	for _, t := range types {
		if entity := s.entities[s.element(t)]; entity != nil {
			found = append(found, entity)
		}
	}
	return found
}

// element strips arrays off a type name, if they end.
func (s *Schema) element(typeName string) string {
	for range len(s.entities) {
		entity := s.entities[typeName]
		if entity == nil || entity.Meta != MetaArray {
			break
		}
		typeName = entity.ElementType
	}
	return typeName
}

// AllMembers lists an object's members and those of all its variants, in the
// schema's order. A name occurs once for each type that it has.
func (s *Schema) AllMembers(typeName string) []Member {
	return s.allMembers(typeName, map[string]bool{})
}

// allMembers passes over the types in which it is already: no object is a variant
// of itself.
func (s *Schema) allMembers(typeName string, within map[string]bool) []Member {
	entity := s.entities[typeName]
	if entity == nil || entity.Meta != MetaObject || within[typeName] {
		return nil
	}
	within[typeName] = true
	defer delete(within, typeName)
	members := slices.Clone(entity.Members)
	for _, variant := range entity.Variants {
		for _, member := range s.allMembers(variant.Type, within) {
			known := func(m Member) bool { return m.Name == member.Name && m.Type == member.Type }
			if !slices.ContainsFunc(members, known) {
				members = append(members, member)
			}
		}
	}
	return members
}
