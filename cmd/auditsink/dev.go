package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"auditsink/config"
	"auditsink/internal/devstack"
	"auditsink/internal/kafka"
	"auditsink/internal/postgres"
	"auditsink/migrations"
	"auditsink/partitions"
)

// devTopic is the topic of the embedded broker.
const devTopic = "audit-events"

func newDevCommand() *cobra.Command {
	var d dev
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Try auditsink with a broker, a PostgreSQL and sample events of its own",
		Long: `Try auditsink with a broker, a PostgreSQL and sample events of its own.

Nothing needs to be installed: the broker is built in, and PostgreSQL is
downloaded the first time. Data is kept for the next time, unless --once asks
for a fresh temporary folder: then dev ends when all events are stored, with a
line of JSON that counts them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := cmd.Flags()
			if err := checkRate(d.rate); err != nil {
				return err
			}
			if d.once && !flags.Changed("events") {
				d.events = 1000
			}
			if d.once && !flags.Changed("rate") {
				d.rate = 0
			}
			d.out, d.screen = cmd.OutOrStdout(), newScreen(cmd.ErrOrStderr())
			err := d.run(cmd.Context())
			if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
				return nil // interrupted before it was under way
			}
			return err
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&d.events, "events", 0, "how many events; 0: without end (default 1000 with --once)")
	f.Float64Var(&d.rate, "rate", 200, "events a second; 0: as fast as possible (default 0 with --once)")
	f.BoolVar(&d.once, "once", false, "use a fresh temporary folder, and end when all events are stored")
	f.StringVar(&d.dir, "dir", "", "folder for the data (default: in the user's cache folder)")
	f.IntVar(&d.kafkaPort, "kafka-port", 0, "port of the broker (default: a free one)")
	f.IntVar(&d.postgresPort, "postgres-port", 0, "port of PostgreSQL (default: a free one)")
	f.StringVar(&d.http, "http", "127.0.0.1:0", "address of metrics and health; port 0: a free one")
	return cmd
}

// dev is one run of the command.
type dev struct {
	events                  uint64
	rate                    float64
	once                    bool
	dir, http               string
	kafkaPort, postgresPort int

	out    io.Writer
	screen *screen
}

// run starts the servers, runs all on them, and stops them again.
func (d *dev) run(ctx context.Context) (err error) {
	d.screen.printf("starting a broker and PostgreSQL …")
	stack, err := devstack.Start(ctx, devstack.Options{
		Dir: d.dir, Once: d.once, Topic: devTopic,
		KafkaPort: d.kafkaPort, PostgresPort: d.postgresPort,
		Notice: func(line string) { d.screen.printf("%s", line) },
	})
	if err != nil {
		return err
	}
	result, err := d.runOn(ctx, stack)
	// A PostgreSQL that is gone is the cause of whatever else went wrong.
	if lost := stack.Err(); lost != nil {
		err = lost
	}
	if err := errors.Join(err, stack.Close()); err != nil {
		return err
	}
	if !d.once {
		return nil
	}
	if err := json.NewEncoder(d.out).Encode(result); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if ctx.Err() == nil && result.Produced != result.Stored+result.Quarantined {
		return fmt.Errorf("%d events were produced, but %d stored and %d quarantined", result.Produced, result.Stored, result.Quarantined)
	}
	return nil
}

// devResult is what --once ends with.
type devResult struct {
	Produced    int64   `json:"produced"`
	Stored      int64   `json:"stored"`
	Quarantined int64   `json:"quarantined"`
	Seconds     float64 `json:"seconds"` // from the first event until all are stored
}

// runOn produces events and runs a worker on the servers until ctx ends or, for
// --once, all events are stored.
func (d *dev) runOn(ctx context.Context, stack *devstack.Stack) (devResult, error) {
	cfg := config.Default()
	cfg.KafkaBrokers, cfg.KafkaTopics = stack.Brokers(), []string{devTopic}
	cfg.PostgresURL = config.Secret(stack.PostgresURL())
	cfg.HTTPAddr = d.http
	cfg.ShutdownTimeout = 10 * time.Second // nobody waits for a trial that went wrong
	level := zap.NewAtomicLevelAt(zapcore.WarnLevel)
	log := consoleLogger(d.screen, level)

	if _, err := migrations.Apply(ctx, cfg.PostgresURL.Reveal()); err != nil {
		return devResult{}, postgres.Explain(err)
	}
	// The counts are taken after ctx has ended.
	pool, err := openDatabase(context.WithoutCancel(ctx), cfg, cfg.PostgresURL)
	if err != nil {
		return devResult{}, err
	}
	defer pool.Close()
	if _, err := partitions.Ensure(ctx, pool.Pool, time.Now(), schedule(cfg)); err != nil {
		return devResult{}, postgres.Explain(err)
	}
	producer, err := kafka.NewProducer(cfg, log)
	if err != nil {
		return devResult{}, err
	}
	defer producer.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.KafkaBrokers...))
	if err != nil {
		return devResult{}, fmt.Errorf("make a Kafka client: %w", err)
	}
	defer client.Close()
	w := &watch{pool: pool, broker: kadm.NewClient(client), screen: d.screen}
	if err := w.begin(ctx); err != nil {
		return devResult{}, err
	}

	group, ctx := errgroup.WithContext(ctx)
	// The worker goes on until the producer has come to its end.
	working, stopWorker := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorker()
	begin, stored := time.Now(), time.Time{}
	group.Go(func() error {
		err := runWorker(working, cfg, log, level, func(addr string) { d.say(stack, addr) })
		if working.Err() == nil && err == nil {
			err = errors.New("the worker has stopped by itself")
		}
		return err
	})
	group.Go(func() error {
		defer stopWorker()
		p := production{topic: devTopic, events: d.events, rate: d.rate, next: samples(rand.Uint64())} //nolint:gosec // G404: sample data needn't be secret.
		producing := make(chan error, 1)
		group.Go(func() error {
			producing <- p.run(ctx, producer)
			return nil
		})
		err := w.follow(ctx, producer, producing, d.once, stack.Done())
		stored = time.Now()
		return err
	})
	if err := group.Wait(); err != nil {
		return devResult{}, err
	}
	d.screen.clear()
	result := devResult{Produced: producer.Acknowledged(), Seconds: float64(stored.Sub(begin).Milliseconds()) / 1000}
	result.Stored, result.Quarantined, err = w.count(context.WithoutCancel(ctx))
	if err != nil {
		return devResult{}, err
	}
	d.screen.printf("produced %d, stored %d, quarantined %d in %.1f s", result.Produced, result.Stored, result.Quarantined, result.Seconds)
	return result, nil
}

// say tells where to look.
func (d *dev) say(stack *devstack.Stack, httpAddr string) {
	d.screen.printf("  database  psql '%s'", stack.PostgresURL())
	d.screen.printf("  broker    %s, topic %s", stack.Brokers()[0], devTopic)
	d.screen.printf("  metrics   http://%s/metrics", httpAddr)
	d.screen.printf("  data      %s", stack.Dir())
	if !d.once {
		d.screen.printf("Ctrl-C stops it all; the data is kept for the next time.")
	}
}

// consoleLogger logs for people.
func consoleLogger(w io.Writer, level zapcore.LevelEnabler) *zap.Logger {
	enc := zap.NewDevelopmentEncoderConfig()
	enc.EncodeTime = zapcore.TimeEncoderOfLayout(time.TimeOnly)
	enc.CallerKey, enc.StacktraceKey = zapcore.OmitKey, zapcore.OmitKey
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(enc), zapcore.Lock(zapcore.AddSync(w)), level))
}
