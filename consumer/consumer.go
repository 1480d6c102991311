// Package consumer takes part in the group: it claims lanes as Kafka assigns them, buffers their records within a
// budget of bytes, cuts batches and hands them to the sink, and commits offsets after that.
package consumer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/metrics"
	"auditsink/sink"
)

// Options say how to consume.
type Options struct {
	// Group is the consumer group.
	Group string
	// Owner names this worker in audit_lane.
	Owner string
	// FromLatest makes a group that never committed begin at the end of the log and not at its start.
	FromLatest bool
	// A batch is begun once it has FlushRows records or FlushBytes bytes, or early enough for its oldest record to be stored FlushInterval after it came, if
	// the flush takes no longer than half of that, nor than those before.
	FlushRows     int
	FlushBytes    int64
	FlushInterval time.Duration
	// BufferBytes is what all lanes together may hold in memory.
	BufferBytes int64
	// SessionTimeout is how long the group waits for this member's heartbeats before it gives its lanes to others.
	SessionTimeout time.Duration
	// DrainTimeout bounds the storing of what is buffered when lanes are revoked or the worker stops.
	DrainTimeout time.Duration
}

// Consumer takes part in the group for as long as it runs, as one member after another.
type Consumer struct {
	join   func() (*member, error)
	log    *zap.Logger
	member atomic.Pointer[member]
}

// New makes a consumer, which joins at once. client are the options of brokers, security and topics. Run must follow.
func New(opts Options, client []kgo.Opt, s *sink.Sink, m *metrics.Metrics, log *zap.Logger) (*Consumer, error) {
	noted := &sync.Map{}
	c := &Consumer{log: log, join: func() (*member, error) { return newMember(opts, client, s, m, log, noted) }}
	first, err := c.join()
	if err != nil {
		return nil, err
	}
	c.member.Store(first)
	return c, nil
}

// steadyAfter is how long a membership lasts that wasn't ended by what ended the one before.
const steadyAfter = time.Minute

// Run consumes until ctx ends, then stores what is buffered, commits, and leaves the group. It returns nil after that, or the error that
// no lane can live with.
func (c *Consumer) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, time.Minute
	for {
		began := time.Now()
		err := c.member.Load().run(ctx)
		if !errors.Is(err, errRejoin) {
			return err
		}
		if time.Since(began) > steadyAfter {
			pause.Reset()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause.NextBackOff()):
		}
		next, err := c.join()
		if err != nil {
			return err
		}
		c.member.Store(next)
		c.log.Info("joining the group anew")
	}
}

// Abandon makes Run, once its context has ended, return without storing what is buffered. Nothing is lost: it is read again from the positions.
func (c *Consumer) Abandon() { c.member.Load().stop() }

// Ready is nil while the worker takes in events, else it says why it doesn't.
func (c *Consumer) Ready() error { return c.member.Load().ready() }

// Status is how the worker stands with Kafka.
type Status struct {
	// Joined says that the group has given an assignment, if only an empty one.
	Joined bool
	// BrokersSeen is when a broker answered last; zero if none has yet.
	BrokersSeen time.Time
	// Lanes counts the lanes owned, Waiting those of them that wait for their claim, and Halted those that stand still until an operator acts.
	Lanes, Waiting, Halted int
	// Problem is what [Consumer.Ready] says.
	Problem error
}

// Status is how it stands now.
func (c *Consumer) Status() Status {
	m := c.member.Load()
	m.mu.Lock()
	s := Status{Joined: m.joined, BrokersSeen: m.brokersSeen, Lanes: len(m.lanes)}
	m.mu.Unlock()
	for _, l := range m.ownLanes() {
		l.mu.Lock()
		switch l.phase {
		case waiting:
			s.Waiting++
		case halted:
			s.Halted++
		case running, draining:
		}
		l.mu.Unlock()
	}
	s.Problem = m.ready()
	return s
}
