package fleet

import "time"

// Totals are what the figures of replicas come to together.
type Totals struct {
	Replicas         int                 `json:"replicas"`
	Ready            int                 `json:"ready"`
	LanesOwned       int                 `json:"lanes_owned"`
	LanesHalted      int                 `json:"lanes_halted"`
	LagRecords       int64               `json:"lag_records"` // sum
	LagSeconds       float64             `json:"lag_seconds"` // of the lane that is furthest behind
	RecordsPerSecond float64             `json:"records_per_second"`
	RowsPerSecond    float64             `json:"rows_per_second"`
	BufferedBytes    int64               `json:"buffered_bytes"`
	MemoryBytes      int64               `json:"memory_bytes"`
	Alerts           map[string][]string `json:"alerts"` // active ones by name, with the replicas that tell them
}

// Total sums figures up.
func Total(replicas []Figures) Totals {
	t := Totals{Replicas: len(replicas), Alerts: map[string][]string{}}
	for _, f := range replicas {
		if f.Ready {
			t.Ready++
		}
		t.LanesOwned += f.LanesOwned
		t.LanesHalted += f.LanesHalted
		t.LagRecords += f.LagRecords
		t.LagSeconds = max(t.LagSeconds, f.LagSeconds)
		t.RecordsPerSecond += f.RecordsPerSecond
		t.RowsPerSecond += f.RowsPerSecond
		t.BufferedBytes += f.BufferedBytes
		t.MemoryBytes += f.MemoryBytes
		for _, alert := range f.Alerts {
			t.Alerts[alert] = append(t.Alerts[alert], f.Instance)
		}
	}
	return t
}

// Summary is what the leader tells of the whole fleet.
type Summary struct {
	Format      int       `json:"format"`
	At          time.Time `json:"at"`
	Leader      string    `json:"leader"`       // its instance
	LeaderSince time.Time `json:"leader_since"` // by the database's clock
	Totals
	ReadyUntil time.Time        `json:"partitions_ready_until,omitzero"`
	Quarantine map[string]int64 `json:"quarantine"`                 // records by state; null: not counted yet
	Reasons    map[string]int64 `json:"quarantine_reasons"`         // of the new ones, by reason
	CountedAt  time.Time        `json:"quarantine_at,omitzero"`     // when they were counted
	Notes      []string         `json:"notes,omitempty"`            // what was in Redis and couldn't be read
	Trouble    string           `json:"quarantine_error,omitempty"` // why they weren't counted anew
}
