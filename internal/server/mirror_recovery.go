package server

import "godwit.dev/godwit/internal/store"

// recovery gives the store's generation, and why nothing may be done because it
// was restored, or "".
func (m *mirror) recovery() (generation uint32, why string) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.generation, m.restored
}

// noteRecovery shows what this server has read or written itself, before the
// watch does.
func (m *mirror) noteRecovery(generation uint32, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.generation, m.restored = max(m.generation, generation), why
	m.at.generation = m.generation
}

// putGeneration must be called with mu held, like putRestore.
func (m *mirror) putGeneration(event store.Event) error {
	entry, err := m.tables.counters.Decode(event.Record)
	if err == nil && !event.Deleted {
		m.generation = max(m.generation, entry.Value)
	}
	return err
}

func (m *mirror) putRestore(event store.Event) error {
	if event.Deleted {
		m.restored = ""
		return nil
	}
	entry, err := m.tables.restores.Decode(event.Record)
	m.restored = entry.Value.Why
	return err
}
