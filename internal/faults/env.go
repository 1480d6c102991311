package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
)

const (
	// patience is how long a scenario waits for what must come: far more than it takes.
	patience = 2 * time.Minute
	// sessionTimeout is the workers' AUDITSINK_KAFKA_SESSION_TIMEOUT: a dead one is noticed soon.
	sessionTimeout = 2 * time.Second
)

// world says what a scenario's environment is made of.
type world struct {
	lanes int32
	// replicas of the topic's partitions; 1 unless given.
	replicas int16
	// server is the database's; the one that all share unless given. databaseURL is a database on it; a new one unless given.
	server      *testkit.PostgresServer
	databaseURL string
	// through is the database's URL for the workers, where they go through a proxy.
	through func(databaseURL string) (string, error)
	// seeds are the brokers as producers and the oracle reach them; those that all share unless given.
	seeds []string
	// topic has further settings of the topic.
	topic map[string]string
	// settings replace those of the workers.
	settings settings
	// rewinds says that positions may go back on the way.
	rewinds bool
}

// env is a scenario's environment. It belongs to the scenario's goroutine.
type env struct {
	*testing.T
	seed uint64 // its own, which follows from the run's
	rng  *rand.Rand

	world
	binary func() (string, error)
	// topic is the first topic, and the name of the group.
	topic string
	// workersURL is where the workers find the database; db is the scenario's own way.
	workersURL string
	db         *pgxpool.Pool
	kafka      *kgo.Client
	admin      *kadm.Client

	workers []*worker
	loads   []*load
	ledgers []*ledger
	allowed allowance
	watch   *watch
	suite   *suite
}

// build makes the environment: a migrated database, and a topic that is also the group's name.
func (e *env) build(w world) {
	e.Helper()
	if w.lanes == 0 {
		w.lanes = 4
	}
	if w.replicas == 0 {
		w.replicas = 1
	}
	if w.seeds == nil {
		w.seeds = testkit.Kafka(e.T).Brokers()
	}
	if w.databaseURL == "" {
		w.databaseURL = e.createDatabase(w.server)
	}
	e.world, e.workersURL = w, w.databaseURL
	if w.through != nil {
		var err error
		e.workersURL, err = w.through(w.databaseURL)
		require.NoError(e, err)
	}
	e.topic = testkit.Name(e.T)
	var err error
	e.kafka, err = kgo.NewClient(kgo.SeedBrokers(e.seeds...), kgo.DialTimeout(2*time.Second), kgo.MetadataMinAge(50*time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }))
	require.NoError(e, err)
	e.Cleanup(e.kafka.Close)
	e.admin = kadm.NewClient(e.kafka)
	e.createTopic(e.topic)
	config, err := pgxpool.ParseConfig(e.databaseURL)
	require.NoError(e, err)
	config.MaxConns, config.ConnConfig.ConnectTimeout = 3, 5*time.Second
	config.ConnConfig.RuntimeParams["application_name"] = "faults"
	// The scenario itself is not to be a victim of what it does to the database's settings.
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "off"
	config.ConnConfig.RuntimeParams["statement_timeout"] = "60s"
	e.db, err = pgxpool.NewWithConfig(context.WithoutCancel(e.Context()), config)
	require.NoError(e, err)
	e.Cleanup(e.db.Close)
	e.command("migrate", "up")
	e.watch = startWatch(e.Context(), e.db, e.admin, e.topic, w.rewinds)
	e.Cleanup(func() { e.watch.end() })
}

// createDatabase makes a database on a server, or on the one that all share.
func (e *env) createDatabase(server *testkit.PostgresServer) string {
	e.Helper()
	var err error
	shared := server == nil
	if shared {
		server, err = e.suite.postgres()
		require.NoError(e, err)
	}
	databaseURL, err := server.CreateDatabase(e.Context())
	require.NoError(e, err)
	if shared {
		e.Cleanup(func() { require.NoError(e, server.DropDatabase(context.WithoutCancel(e.Context()), databaseURL)) })
	}
	return databaseURL
}

// createTopic makes a topic, for the first time or again, and a ledger for what is sent into it.
func (e *env) createTopic(name string) *ledger {
	e.Helper()
	configs := map[string]*string{}
	for k, v := range e.world.topic {
		configs[k] = &v
	}
	e.eventually("the topic can be made", func() bool {
		_, err := e.admin.CreateTopic(e.Context(), e.lanes, e.replicas, configs, name)
		return err == nil || errors.Is(err, kerr.TopicAlreadyExists) // it was made though the answer was lost
	})
	var details kadm.TopicDetail
	e.eventually("the topic has leaders", func() bool {
		topics, err := e.admin.ListTopics(e.Context(), name)
		if err != nil || topics.Error() != nil {
			return false
		}
		details = topics[name]
		for _, p := range details.Partitions {
			if p.Err != nil || p.Leader < 0 {
				return false
			}
		}
		return len(details.Partitions) == int(e.lanes)
	})
	l := newLedger(incarnation{name, details.ID})
	e.ledgers = append(e.ledgers, l)
	return l
}

// command runs a command of the program that has to succeed.
func (e *env) command(args ...string) string {
	e.Helper()
	path, err := e.binary()
	require.NoError(e, err)
	p, err := startProcess(path, e.workerSettings(), "", args...)
	require.NoError(e, err)
	select {
	case <-p.done:
	case <-time.After(patience):
		require.NoError(e, p.kill())
		require.Fail(e, "it has not ended", "%v", args)
	}
	require.Zero(e, p.state.ExitCode(), "%v: %s", args, p.log.tail())
	return p.log.String()
}

// workerSettings are those of the workers: small batches, so that every moment of a batch's life comes often.
func (e *env) workerSettings() settings {
	return settings{
		"KAFKA_BROKERS": strings.Join(e.seeds, ","), "KAFKA_TOPICS": e.topic, "KAFKA_GROUP": e.topic,
		"KAFKA_SESSION_TIMEOUT": sessionTimeout.String(), "POSTGRES_URL": e.workersURL, "HTTP_ADDR": "127.0.0.1:0",
		"FLUSH_ROWS": "40", "FLUSH_INTERVAL": "50ms", "POOL_MIN_CONNS": "0", "POOL_MAX_CONNS": "3", "POOL_RETRY_DELAY": "100ms",
		"EVENT_MAX_BYTES": strconv.Itoa(maxEventBytes),
	}.with(e.settings)
}

// produce begins to send, with some of everything, at a rate that keeps the lanes busy. stopLoads ends it.
func (e *env) produce(o loadOptions) *load {
	e.Helper()
	if o.brokers == nil {
		o.brokers = e.seeds
	}
	if o.lanes == 0 {
		o.lanes = e.lanes
	}
	if o.rate == 0 {
		o.rate = 200
	}
	if r := &o.recipe; r.poison+r.late+r.refused == 0 && !r.skew && r.place == nil && r.refusedAt == nil {
		o.recipe = recipe{poison: 0.03, late: 0.02}
	}
	tag := fmt.Sprintf("%x-%d", e.seed&0xffffff, len(e.loads))
	if o.into == nil {
		o.into = e.ledgers[0]
	}
	l, err := startLoad(e.Context(), o.into, tag, e.seed+uint64(len(e.loads)), o)
	require.NoError(e, err)
	e.loads = append(e.loads, l)
	e.Cleanup(func() {
		if err := l.stop(); err != nil && !e.Failed() {
			e.Errorf("the load: %v", err)
		}
	})
	return l
}

// stopLoads ends all sending and waits until the brokers have answered.
func (e *env) stopLoads() {
	e.Helper()
	for _, l := range e.loads {
		require.NoError(e, l.stop(), "the load")
	}
}

// acked is how many records the brokers have acknowledged so far.
func (e *env) acked() (n int) {
	for _, l := range e.ledgers {
		n += l.count()
	}
	return n
}

// awaitAcked waits until so many more are acknowledged.
func (e *env) awaitAcked(more int) {
	e.Helper()
	least := e.acked() + more
	e.eventually("more is produced", func() bool { return e.acked() >= least })
}

// number is the answer of a query, or -1 where there is none for now.
func (e *env) number(sql string, args ...any) (n int64) {
	ctx, cancel := context.WithTimeout(e.Context(), 10*time.Second)
	defer cancel()
	if err := e.db.QueryRow(ctx, sql, args...).Scan(&n); err != nil {
		return -1
	}
	return n
}

// statement runs SQL that has to succeed.
func (e *env) statement(sql string, args ...any) {
	e.Helper()
	_, err := e.db.Exec(e.Context(), sql, args...)
	require.NoError(e, err, sql)
}

// database is the database's name, quoted.
func (e *env) database() string {
	u, err := url.Parse(e.databaseURL)
	require.NoError(e, err)
	return `"` + strings.TrimPrefix(u.Path, "/") + `"`
}

// positions is the sum of all positions, or -1.
func (e *env) positions() int64 {
	return e.number(`SELECT coalesce(sum(next_offset), 0)::bigint FROM audit_lane WHERE state <> 'retired'`)
}

// awaitStored waits until the positions have moved by so many in all.
func (e *env) awaitStored(more int64) {
	e.Helper()
	e.eventually("the database can be asked", func() bool { return e.positions() >= 0 })
	least := e.positions() + more
	e.eventually("more is stored", func() bool { return e.positions() >= least })
}

// eventually waits until a condition holds. It asks on the scenario's own goroutine, where a condition may fail the test.
func (e *env) eventually(what string, cond func() bool) {
	e.Helper()
	late := time.After(patience)
	for !cond() {
		select {
		case <-late:
			require.FailNow(e, "it has not come true: "+what)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// pass lets a random time up to most go by, for a fault to come at any moment.
func (e *env) pass(most time.Duration) {
	time.Sleep(time.Duration(e.rng.Int64N(int64(most))))
}

// settled waits until every lane is at the end of its log, in Postgres and in Kafka, or patience has run out; the oracle tells what is wrong then.
func (e *env) settled() {
	e.Helper()
	late := time.After(patience)
	for !e.atEnd() {
		select {
		case <-late:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (e *env) atEnd() bool {
	ctx, cancel := context.WithTimeout(e.Context(), 10*time.Second)
	defer cancel()
	end := int64(0)
	for _, topic := range e.topics() {
		log, err := offsets(ctx, e.admin, topic, e.topic)
		if err != nil {
			return false
		}
		for _, lane := range log.lanes {
			if end += lane.end; lane.end > 0 && lane.committed < lane.end {
				return false
			}
		}
	}
	return e.positions() == end
}

// topics are the topics that something was sent into.
func (e *env) topics() (names []string) {
	for _, l := range e.ledgers {
		if !slices.Contains(names, l.into.topic) {
			names = append(names, l.into.topic)
		}
	}
	return names
}

// finish is the end of every scenario, when its faults are healed: the load ends, everything arrives, the workers stop well, and the oracle looks
// at what is there. It returns what is wrong.
func (e *env) finish() *findings {
	e.Helper()
	e.stopLoads()
	if !slices.ContainsFunc(e.workers, func(w *worker) bool { return w.running() }) {
		e.worker()
	}
	e.settled()
	var stopping sync.WaitGroup
	for _, w := range e.workers {
		if w.running() {
			stopping.Go(w.stop)
		}
	}
	stopping.Wait()
	for _, w := range e.workers {
		w.endedWell()
	}
	ctx, cancel := context.WithTimeout(e.Context(), patience)
	defer cancel()
	var logs []*topicLog
	for _, topic := range e.topics() {
		log, err := readLog(ctx, e.seeds, topic, e.topic, true)
		require.NoError(e, err)
		logs = append(logs, log)
	}
	found, err := judge(ctx, e.db, e.ledgers, logs, e.allowed)
	require.NoError(e, err)
	found.join(e.watch.end())
	e.suite.tally.judged(e.acked(), found)
	e.Logf("%d events acknowledged, %d rows, %d quarantined, %d table partitions", e.acked(), e.number(`SELECT count(*) FROM audit_log`),
		e.number(`SELECT count(*) FROM audit_quarantine`), e.number(`SELECT count(*) FROM audit_log_partition_bounds()`))
	return found
}

// clean is finish where nothing may be wrong.
func (e *env) clean() {
	e.Helper()
	if found := e.finish(); len(found.counts) > 0 {
		e.Errorf("%s", found)
	}
}
