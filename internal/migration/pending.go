package migration

import (
	"slices"

	"godwit.dev/godwit/internal/fleet"
)

// want adds an effect to those that are pending.
func (m *Migration) want(kind EffectKind, host fleet.HostName) *Effect {
	m.Sequence++
	m.Pending = append(m.Pending, Effect{Sequence: m.Sequence, Kind: kind, Host: host})
	return &m.Pending[len(m.Pending)-1]
}

func (m *Migration) isPending(kind EffectKind) bool {
	return slices.ContainsFunc(m.Pending, func(effect Effect) bool { return effect.Kind == kind })
}

// drop removes pending effects of some kinds that nobody needs any more.
func (m *Migration) drop(kinds ...EffectKind) {
	m.Pending = slices.DeleteFunc(slices.Clone(m.Pending), func(effect Effect) bool {
		return slices.Contains(kinds, effect.Kind)
	})
}

// expects reports whether the answer to that very effect is waited for.
func (m *Migration) expects(kind EffectKind, sequence uint64) bool {
	return slices.ContainsFunc(m.Pending, func(effect Effect) bool {
		return effect.Kind == kind && effect.Sequence == sequence
	})
}

// firstSince gives the index of the first pending effect newer than sequence.
func (m *Migration) firstSince(sequence uint64) int {
	newer := func(effect Effect) bool { return effect.Sequence > sequence }
	if first := slices.IndexFunc(m.Pending, newer); first >= 0 {
		return first
	}
	return len(m.Pending)
}
