package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"auditsink/config"
	"auditsink/consumer"
	"auditsink/internal/event"
	"auditsink/internal/kafka"
	"auditsink/internal/performance"
	"auditsink/internal/postgres"
	"auditsink/internal/server"
	"auditsink/metrics"
	"auditsink/migrations"
	"auditsink/partitions"
	"auditsink/sink"
)

// runWorker runs one worker until ctx ends and it has shut down cleanly, or until something happens that it can't live with. ready is told the
// HTTP address as soon as it is answering.
func runWorker(ctx context.Context, cfg config.Config, log *zap.Logger, level zap.AtomicLevel, ready func(httpAddr string)) error {
	// What the worker is built of outlives ctx until the consumer has shut down.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	w, err := openWorker(life, cfg, log, level)
	defer w.close()
	if err != nil {
		return err
	}
	group, life := errgroup.WithContext(life)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(life, stop) // what ends one part ends all
	group.Go(func() error { return w.http.Serve(life) })
	group.Go(func() error { return observe(ctx, w.alerts.run, w.health.run) }) // from the first: what keeps it from starting is worth an alert
	ready(w.http.Addr())
	group.Go(func() error {
		defer end()
		err := prepare(ctx, cfg, log, w.ingest, w.maintenance, w.watch, w.metrics, w.state)
		if err != nil {
			if ctx.Err() != nil {
				return nil // told to stop before it began
			}
			return err
		}
		// Until ctx ends, not life: maintenance is handed over at once, while the lanes drain.
		group.Go(func() error {
			return maintain(ctx, cfg, w.maintenance, w.watch, w.reads.cache, w.optimizer, w.metrics, log)
		})
		group.Go(func() error {
			return observe(ctx, watchCache(cfg, w.reads.cache, w.metrics), w.reports.Run,
				reportFigures(cfg, w.redis, w.maintenance, w.http.Addr(), w.metrics, w.state, log))
		})
		return consume(ctx, cfg, log, w.ingest, w.maintenance, w.watch, w.metrics, w.state)
	})
	return group.Wait()
}

// worker is what a worker is built of. Nothing of it waits for a server to be there.
type worker struct {
	metrics             *metrics.Metrics
	state               *readiness
	health              *healthWatch
	alerts              *alerting
	redis               *redis.Client // nil without
	ingest, maintenance *postgres.Pool
	reads               *reads
	watch               *partitions.Watch
	optimizer           *performance.Optimizer
	reports             *performance.Collector
	http                *server.Server
}

// openWorker makes all parts. Beside an error there are those made until then, to be closed.
func openWorker(ctx context.Context, cfg config.Config, log *zap.Logger, level zap.AtomicLevel) (*worker, error) {
	m, state := metrics.New(version, event.Reasons()), &readiness{}
	state.set("starting")
	w := &worker{metrics: m, state: state, health: newHealthWatch(m, state)}
	var err error
	if w.alerts, err = newAlerting(cfg, m, log); err != nil {
		return w, err
	}
	if w.redis, err = openRedis(cfg); err != nil {
		return w, err
	}
	if w.ingest, w.maintenance, err = workerPools(ctx, cfg, m); err != nil {
		return w, err
	}
	if w.reads, err = openReads(ctx, cfg, w.redis, m, log); err != nil {
		return w, err
	}
	w.health.watch("ingest", "AUDITSINK_POOL_MAX_CONNS", w.ingest)
	w.health.watch("reads", "AUDITSINK_QUERY_MAX_CONNS", w.reads.pool)
	w.watch = partitions.NewWatch(w.maintenance.Pool, m, schedule(cfg), retention(cfg))
	w.optimizer = newOptimizer(cfg, w.maintenance, w.reads.clear, m, log)
	w.reports = newReports(cfg, w.ingest, w.optimizer, m, log)
	w.http, err = server.Listen(ctx, w.reads.serve(server.Options{
		Addr: cfg.HTTPAddr, Scrape: m.Handler(), Ready: state.ready, Health: m.Health, Level: &level, Log: log,
		Report: func(ctx context.Context) (any, error) { return w.reports.Report(ctx) },
	}, cfg))
	return w, err
}

// close ends what was made: the cache before the client that it uses.
func (w *worker) close() {
	if w.reads != nil {
		w.reads.close()
	}
	if w.redis != nil {
		w.redis.Close() //nolint:errcheck,gosec // there is nothing to be saved
	}
	if w.maintenance != w.ingest {
		w.maintenance.Close()
	}
	if w.ingest != nil {
		w.ingest.Close()
	}
}

// prepare waits for Postgres and the brokers, and checks that schema, table partitions and topics are there.
func prepare(ctx context.Context, cfg config.Config, log *zap.Logger, ingest, maintenance *postgres.Pool, watch *partitions.Watch, m *metrics.Metrics, state *readiness) error {
	state.set("waiting for Postgres")
	if err := awaitDatabase(ctx, cfg, ingest, log); err != nil {
		return err
	}
	if err := migrations.Check(ctx, ingest.Pool); err != nil {
		return postgres.Explain(err)
	}
	if maintenance != ingest {
		if err := awaitDatabase(ctx, cfg, maintenance, log); err != nil {
			return err
		}
	}
	if err := ensurePartitions(ctx, cfg, maintenance, log); err != nil {
		return err
	}
	tellOtherIndexes(ctx, maintenance, cfg, log)
	if err := watch.Publish(ctx, time.Now()); err != nil {
		log.Warn("metrics and health of the table partitions come later", zap.Error(postgres.Explain(err)))
	}
	state.set("waiting for Kafka")
	return awaitTopics(ctx, cfg, m, log)
}

// ensurePartitions creates the table partitions that are missing, and waits without end for a server that is away. What is in the way of one that is for
// later, or has something locked for now, doesn't keep a worker from beginning where a running one would go on: the leader tries again, and says so.
func ensurePartitions(ctx context.Context, cfg config.Config, pool *postgres.Pool, log *zap.Logger) error {
	for {
		_, err := partitions.Ensure(ctx, pool.Pool, time.Now(), schedule(cfg))
		if err == nil {
			return nil
		}
		passing := !inTheWay(err) && postgres.Classify(err) == postgres.Transient
		now := time.Now()
		existing, lookErr := partitions.List(ctx, pool.Pool)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case (passing || inTheWay(err)) && lookErr == nil && partitions.ReadyUntil(now, existing).After(now):
			log.Error("table partitions are missing, but not today's", zap.Error(postgres.Explain(err)))
			return nil
		case !passing:
			return fmt.Errorf("ensure the table partitions: %w", postgres.Explain(err))
		}
		log.Warn("waiting for the table partitions", zap.Error(postgres.Explain(err)))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// awaitTopics waits without end for a broker to answer, and then requires the topics.
func awaitTopics(ctx context.Context, cfg config.Config, m *metrics.Metrics, log *zap.Logger) error {
	opts, err := kafkaOptions(cfg, m, log)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("make the Kafka client: %w", err)
	}
	defer client.Close()
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := kafka.CheckTopics(attempt, kadm.NewClient(client), cfg.KafkaTopics)
		cancel()
		if err == nil {
			return nil
		}
		if err = kafka.Explain(err, cfg); kafka.Fatal(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		log.Warn("waiting for Kafka", zap.Error(err))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// kafkaOptions are those of a client whose failed connects are counted.
func kafkaOptions(cfg config.Config, m *metrics.Metrics, log *zap.Logger) ([]kgo.Opt, error) {
	opts, err := kafka.Options(cfg, log)
	return append(opts, kafka.OnConnectFailure(m.KafkaConnectFailures.Inc)), err
}

// consume runs the group member until ctx ends, and bounds how long it takes to stop after that.
func consume(ctx context.Context, cfg config.Config, log *zap.Logger, ingest, maintenance *postgres.Pool, watch *partitions.Watch, m *metrics.Metrics, state *readiness) error {
	opts, err := kafkaOptions(cfg, m, log)
	if err != nil {
		return err
	}
	s := sink.New(ingest, cfg.CopyConns, rules(cfg), lateDays(cfg, maintenance, watch, log), m, log)
	member, err := consumer.New(consumer.Options{
		Group: cfg.KafkaGroup, Owner: owner(), FromLatest: cfg.KafkaStart == "latest",
		FlushRows: cfg.FlushRows, FlushBytes: int64(cfg.FlushBytes), FlushInterval: cfg.FlushInterval,
		BufferBytes: int64(cfg.BufferBytes), SessionTimeout: cfg.KafkaSessionTimeout, DrainTimeout: min(cfg.ShutdownTimeout/2, 20*time.Second),
	}, append(opts, kafka.ConsumeTopics(cfg.KafkaTopics)...), s, m, log)
	if err != nil {
		return err
	}
	state.follow(member.Ready)
	state.member.Store(member)
	log.Info("worker started", zap.String("group", cfg.KafkaGroup), zap.Strings("topics", cfg.KafkaTopics), zap.String("version", version))

	done := make(chan error, 1)
	go func() { done <- member.Run(ctx) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		log.Info("stopping: storing what is buffered")
		select {
		case err = <-done:
		case <-time.After(cfg.ShutdownTimeout):
			member.Abandon()
			return errors.Join(fmt.Errorf("not stopped within AUDITSINK_SHUTDOWN_TIMEOUT (%s): nothing is lost, what was not stored is read again", cfg.ShutdownTimeout), <-done)
		}
	}
	if err != nil {
		return kafka.Explain(err, cfg)
	}
	log.Info("worker stopped")
	return nil
}

// rules are those of the settings for events.
func rules(cfg config.Config) event.Rules {
	return event.Rules{MaxBytes: int(cfg.EventMaxBytes), Horizon: horizon(cfg), SignatureKey: []byte(cfg.EventSignatureKey.Reveal())}
}

func horizon(cfg config.Config) time.Duration {
	return time.Duration(cfg.RetentionHorizonDays) * 24 * time.Hour
}

// schedule is which partitions there shall be ahead of time.
func schedule(cfg config.Config) partitions.Schedule {
	return partitions.Schedule{Interval: partitions.Interval(cfg.PartitionInterval), Ahead: cfg.PartitionAhead, IndexGrace: cfg.IndexGrace}
}

// owner names this process in audit_lane.
func owner() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}

// lateDays makes table partitions on demand, for late events.
func lateDays(cfg config.Config, pool *postgres.Pool, watch *partitions.Watch, log *zap.Logger) sink.EnsureFunc {
	return func(ctx context.Context, days []time.Time) ([]time.Time, error) {
		_, err := partitions.EnsureFor(ctx, pool.Pool, time.Now(), horizon(cfg), schedule(cfg), days)
		var refused *partitions.RangeError
		if errors.As(err, &refused) {
			return refused.Refused, nil
		}
		if err != nil {
			return nil, err
		}
		if err := watch.Publish(ctx, time.Now()); err != nil { // the next look tells it
			log.Debug("metrics and health of the table partitions come later", zap.Error(err))
		}
		return nil, nil
	}
}

// readiness is what /readyz says. It is set while the worker starts, and the consumer's own word after that.
type readiness struct {
	check  atomic.Pointer[func() error]
	member atomic.Pointer[consumer.Consumer] // nil while the worker starts
}

func (r *readiness) set(why string) { r.follow(func() error { return errors.New(why) }) }

func (r *readiness) follow(check func() error) { r.check.Store(&check) }

func (r *readiness) ready() error { return (*r.check.Load())() }
