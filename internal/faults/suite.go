package faults

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"auditsink/internal/testkit"
)

// atOnce is how many environments run at once beside those that have a server for themselves: most of their time is spent waiting for sessions
// to expire.
const atOnce = 5

// suite is what the scenarios of a run share.
type suite struct {
	t     *testing.T
	slots chan struct{}
	tally tally

	// postgres is for databases of which each scenario has one; its server is never harmed.
	postgres func() (*testkit.PostgresServer, error)
	// lone and cluster are brokers for scenarios that break them, one after the other.
	lone    leased[*testkit.Broker]
	cluster leased[*testkit.Cluster]
	// far is a broker that is reached through a proxy only.
	far leased[*farBroker]
}

// farBroker is a broker with a network before it that can fail.
type farBroker struct {
	*testkit.Broker
	network *testkit.Proxy
}

// startFar starts a broker that has its clients come through a proxy.
func startFar(ctx context.Context, t *testing.T) (*farBroker, error) {
	network, err := testkit.StartProxy(ctx, "127.0.0.1:1")
	if err != nil {
		return nil, err
	}
	closeAfter(t, network, nil)
	broker, err := testkit.StartKafka(ctx, testkit.KafkaOptions{Properties: map[string]string{
		"advertised.listeners": string(testkit.Plaintext) + "://" + network.Address(),
	}})
	if err != nil {
		return nil, err
	}
	closeAfter(t, broker, nil)
	network.Point(broker.Brokers()[0])
	return &farBroker{broker, network}, nil
}

func newSuite(t *testing.T) *suite {
	s := &suite{t: t, slots: make(chan struct{}, atOnce)}
	ctx := context.WithoutCancel(t.Context())
	s.postgres = sync.OnceValues(func() (*testkit.PostgresServer, error) {
		// Many workers at once; and what a crash of the server would do to it is for servers of their own.
		server, err := testkit.StartPostgres(ctx, testkit.PostgresOptions{Version: 18, Settings: map[string]string{"max_connections": "400", "fsync": "off"}})
		closeAfter(t, server, err)
		return server, err
	})
	s.lone.start = sync.OnceValues(func() (*testkit.Broker, error) {
		broker, err := testkit.StartKafka(ctx, testkit.KafkaOptions{})
		closeAfter(t, broker, err)
		return broker, err
	})
	s.far.start = sync.OnceValues(func() (*farBroker, error) { return startFar(ctx, t) })
	s.cluster.start = sync.OnceValues(func() (*testkit.Cluster, error) {
		cluster, err := testkit.StartKafkaCluster(ctx, testkit.KafkaOptions{})
		closeAfter(t, cluster, err)
		return cluster, err
	})
	return s
}

// closeAfter closes a server that has started when all scenarios have ended.
func closeAfter(t *testing.T, server interface{ Close() error }, err error) {
	if err != nil {
		return
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close a server: %v", err)
		}
	})
}

// leased is a server that one scenario at a time has for itself.
type leased[Server any] struct {
	mu    sync.Mutex
	start func() (Server, error)
}

// take waits until the server is free, and keeps it until the scenario has ended.
func (l *leased[Server]) take(e *env) Server {
	l.mu.Lock()
	e.Cleanup(l.mu.Unlock)
	server, err := l.start()
	if err != nil {
		e.Fatalf("start a server: %v", err)
	}
	return server
}

// slot waits until an environment may run, and keeps its place until the scenario has ended.
func (s *suite) slot(t *testing.T) {
	s.slots <- struct{}{}
	t.Cleanup(func() { <-s.slots })
}

// tally adds up what a run has done.
type tally struct {
	mu                                             sync.Mutex
	scenarios, kills, stops, events, lost, doubled int
	kinds                                          map[string]bool
}

func (t *tally) ran(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.scenarios++
	if t.kinds == nil {
		t.kinds = map[string]bool{}
	}
	t.kinds[name] = true
}

func (t *tally) judged(events int, found *findings) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events += events
	t.lost += found.counts[missing]
	t.doubled += found.counts[doubled]
}

func (t *tally) killed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kills++
}

func (t *tally) stopped() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stops++
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Sprintf("faults: %d scenarios of %d kinds, %d kills, %d stops, %d events, %d lost, %d doubled",
		t.scenarios, len(t.kinds), t.kills, t.stops, t.events, t.lost, t.doubled)
}
