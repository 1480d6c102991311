package metrics

import (
	"maps"
	"slices"
	"sync"
)

// Status is how something is, from best to worst.
type Status string

// The statuses there are.
const (
	Healthy  Status = "healthy"
	Warning  Status = "warning"
	Critical Status = "critical"
)

// Component is how one part of the system is.
type Component struct {
	Status          Status         `json:"status"`
	Details         map[string]any `json:"details"`
	Recommendations []string       `json:"-"`
}

// Health is how the whole system is, as /health tells it.
type Health struct {
	Status          Status               `json:"status"`
	Components      map[string]Component `json:"components"`
	Recommendations []string             `json:"recommendations"`
}

// health collects the latest word of each component.
type health struct {
	mu         sync.Mutex // guards components
	components map[string]Component
}

// Report replaces what is known of a component.
func (m *Metrics) Report(name string, c Component) {
	m.health.mu.Lock()
	defer m.health.mu.Unlock()
	if m.health.components == nil {
		m.health.components = map[string]Component{}
	}
	m.health.components[name] = c
}

// Health is the worst status of all components, and what they recommend.
func (m *Metrics) Health() Health {
	m.health.mu.Lock()
	components := maps.Clone(m.health.components)
	m.health.mu.Unlock()
	all := Health{Status: Healthy, Components: components, Recommendations: []string{}}
	for _, name := range slices.Sorted(maps.Keys(components)) {
		c := components[name]
		if c.Status.Rank() > all.Status.Rank() {
			all.Status = c.Status
		}
		all.Recommendations = append(all.Recommendations, c.Recommendations...)
	}
	return all
}

// Rank orders statuses: the worse, the higher.
func (s Status) Rank() int {
	switch s {
	case Healthy:
		return 0
	case Warning:
		return 1
	default:
		return 2
	}
}
