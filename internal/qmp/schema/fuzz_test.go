package schema

import "testing"

// FuzzParse reads descriptions that QEMU would never give, such as types that
// are made of themselves.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`[{"name": "stop", "meta-type": "command", "arg-type": "0", "ret-type": "0"}, {"name": "0", "meta-type": "object", "members": []}]`,
		`[{"name": "stop", "meta-type": "command", "arg-type": "1", "ret-type": "1"}, {"name": "1", "meta-type": "array", "element-type": "1"}]`,
		`[{"name": "stop", "meta-type": "command", "arg-type": "1", "ret-type": "1"}, {"name": "1", "meta-type": "object", "variants": [{"case": "a", "type": "1"}]}]`,
		`[null]`, `[{}]`, `{}`, `[{},{}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, reply []byte) {
		s, err := Parse(reply)
		if err != nil {
			return
		}
		s.HasCommand("stop")
		s.HasArgument("stop", "a.b")
		s.HasResult("stop", "a")
		s.HasMigrationCapability("x")
	})
}
