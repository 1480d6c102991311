// Package sink writes batches of records into Postgres: the rows, the quarantined records and the lane's new
// position in one transaction. Postgres alone says where a lane stands; Kafka's offsets decide nothing.
package sink

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/metrics"
)

// Lane identifies one partition of one Kafka topic. A topic that was deleted and made again has another TopicID.
type Lane struct {
	Topic     string
	TopicID   [16]byte
	Partition int32
}

// String names the lane for logs and messages.
func (l Lane) String() string { return fmt.Sprintf("%s/%d", l.Topic, l.Partition) }

// Claim is the right to continue a lane, and from where. It ends when somebody else claims the lane.
type Claim struct {
	LaneID int32
	// Epoch grows with every claim of the lane.
	Epoch int64
	// Next is the offset of the first record that isn't stored yet.
	Next int64
	// LeaderEpoch is that of the last record taken, -1 if unknown; it lets the broker notice a log that was cut (KIP-320).
	LeaderEpoch int32
}

// Batch is what one transaction stores: consecutive records of a lane and the position behind them. To may lie beyond the last
// record's offset plus one, and Records may be empty, where the log has control records or holes.
type Batch struct {
	Claim       Claim
	To          int64
	LeaderEpoch int32
	Records     []event.Record
	// Gap, if not empty, is the kind of gap that the offsets from Claim.Next to To go on record as; there are no Records then.
	Gap string
}

// GapRetention is the kind of a gap that Kafka's retention made: the broker had removed the records before we came to them.
const GapRetention = "retention"

// Sink stores batches. It is safe for concurrent use by any number of lanes.
type Sink struct {
	pool    *postgres.Pool
	rules   event.Rules
	ensure  EnsureFunc
	metrics *metrics.Metrics
	log     *zap.Logger

	scratches sync.Pool // of *scratch
	brake     brake
	turns     chan struct{} // holds as many as there are COPYs under way
	locked    chan struct{} // the same of batches that had to wait for a lock before
}

// EnsureFunc makes the table partitions for the given days, as first instants in UTC, and returns those it may not make one for.
type EnsureFunc func(ctx context.Context, days []time.Time) (refused []time.Time, err error)

// New makes a sink. ensure is asked when a row found no table partition. copies is how many batches may send their rows at once, at least one, and how many more
// where these had to wait for a lock before; their COMMITs, which wait for the server's disk, aren't counted.
func New(pool *postgres.Pool, copies int, rules event.Rules, ensure EnsureFunc, m *metrics.Metrics, log *zap.Logger) *Sink {
	return &Sink{
		pool: pool, rules: rules, ensure: ensure, metrics: m, log: log, turns: make(chan struct{}, max(copies, 1)), locked: make(chan struct{}, max(copies, 1)),
		scratches: sync.Pool{New: func() any { return &scratch{decoder: event.NewDecoder(rules)} }},
	}
}
