// Package fleet carries the figures of all replicas through Redis: each replica writes its own, with a life, and the leader what they come to together.
// Redis decides nothing: without it the figures are missing, and everything else goes on.
package fleet

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"auditsink/metrics"
)

// format is the version of what is written. A reader leaves others alone; a field that is only added needs no new one.
const format = 1

// Figures are those of one replica, at a moment by its own clock.
type Figures struct {
	Format   int       `json:"format"`
	Instance string    `json:"instance"` // unlike any other's, also that of an earlier process of the same name
	Owner    string    `json:"owner"`    // as audit_lane has it
	Database string    `json:"database"` // host:port/name, as the replica reaches it
	Group    string    `json:"consumer_group"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started_at"`
	At       time.Time `json:"at"`
	HTTPAddr string    `json:"http_addr"`

	Leader      bool      `json:"leader"`
	LeaderSince time.Time `json:"leader_since,omitzero"` // by the database's clock
	Ready       bool      `json:"ready"`
	NotReady    string    `json:"not_ready,omitempty"` // why

	LanesOwned  int     `json:"lanes_owned"`
	LanesHalted int     `json:"lanes_halted"`
	LagRecords  int64   `json:"lag_records"` // of all lanes together
	LagSeconds  float64 `json:"lag_seconds"` // of the lane that is furthest behind
	Lanes       []Lane  `json:"lanes"`       // by topic and partition number
	LanesHidden int     `json:"lanes_hidden,omitempty"`

	RecordsPerSecond float64 `json:"records_per_second"` // taken over from Kafka
	RowsPerSecond    float64 `json:"rows_per_second"`    // stored
	FlushP95         float64 `json:"flush_p95_seconds"`  // 0: nothing was stored
	BufferedBytes    int64   `json:"buffered_bytes"`
	MemoryBytes      int64   `json:"memory_bytes"` // resident

	Alerts     []string                  `json:"alerts"`
	Health     metrics.Status            `json:"health"`
	Components map[string]metrics.Status `json:"components"`
}

// Lane is a lane of a replica.
type Lane struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Position  *int64 `json:"position"` // nil: not known
	Lag       *Lag   `json:"lag"`      // nil: not measured yet
	Halted    string `json:"halted,omitempty"`
}

// Lag is how far a lane is behind.
type Lag struct {
	Records int64   `json:"records"`
	Seconds float64 `json:"seconds"`
}

// Measure sets what a sample tells. Rates, and FlushP95, are of the time since the sample before; that may be a zero Sample but for its At, the start of the replica. Lanes
// that are known get their lag, and those that aren't are added.
func (f *Figures) Measure(before, now metrics.Sample) {
	f.At = now.At.UTC()
	f.Leader, f.LeaderSince = now.Sum("leader") > 0, time.Time{}
	if f.Leader {
		f.LeaderSince = time.Unix(int64(now.Sum("leader_since_timestamp_seconds")), 0).UTC()
	}
	f.LanesOwned, f.LanesHalted = int(now.Sum("lanes_owned")), int(now.Sum("lanes_halted"))
	f.RecordsPerSecond, f.RowsPerSecond = rate(before, now, "records_consumed_total"), rate(before, now, "rows_inserted_total")
	f.FlushP95 = since(before, now, "flush_duration_seconds").Quantile(0.95)
	f.BufferedBytes, f.MemoryBytes = int64(now.Sum("buffered_bytes")), int64(now.Process("process_resident_memory_bytes"))
	f.Alerts = []string{}
	active := now.By("alert_active", "alert")
	for _, name := range slices.Sorted(maps.Keys(active)) {
		if active[name] > 0 {
			f.Alerts = append(f.Alerts, name)
		}
	}
	f.measureLag(now.Lag())
}

func (f *Figures) measureLag(measured []metrics.LaneLag) {
	f.LagRecords, f.LagSeconds = 0, 0
	known := map[string]int{}
	for i, l := range f.Lanes {
		known[l.Name()] = i
	}
	for _, m := range measured {
		f.LagRecords += m.Records
		f.LagSeconds = max(f.LagSeconds, m.Seconds)
		l := Lane{Topic: m.Topic, Partition: m.Partition}
		i, ok := known[l.Name()]
		if !ok {
			i = len(f.Lanes)
			f.Lanes = append(f.Lanes, l)
		}
		f.Lanes[i].Lag = &Lag{Records: m.Records, Seconds: m.Seconds}
	}
	slices.SortFunc(f.Lanes, Lane.Compare)
}

// rate is how much a counter grew a second. One that is lower than before has begun anew.
func rate(before, now metrics.Sample, counter string) float64 {
	elapsed := now.At.Sub(before.At).Seconds()
	if elapsed <= 0 {
		return 0
	}
	from, to := before.Sum(counter), now.Sum(counter)
	if to < from {
		from = 0
	}
	return (to - from) / elapsed
}

func since(before, now metrics.Sample, histogram string) metrics.Distribution {
	earlier, all := before.Distribution(histogram), now.Distribution(histogram)
	if all.Count < earlier.Count {
		return all
	}
	return all.Since(earlier)
}

// Judge sets what /health says.
func (f *Figures) Judge(h metrics.Health) {
	f.Health, f.Components = h.Status, map[string]metrics.Status{}
	for name, c := range h.Components {
		f.Components[name] = c.Status
	}
}

// Name is the lane's name for people: topic/partition.
func (l Lane) Name() string { return LaneName(l.Topic, l.Partition) }

// LaneName names a lane for people: topic/partition.
func LaneName(topic string, partition int32) string {
	return topic + "/" + strconv.Itoa(int(partition))
}

// Compare orders lanes by topic and partition number.
func (l Lane) Compare(other Lane) int {
	if l.Topic != other.Topic {
		if l.Topic < other.Topic {
			return -1
		}
		return 1
	}
	return int(l.Partition) - int(other.Partition)
}
