package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// latencyPlan is under which loads latency is measured, for how long, and how often.
type latencyPlan struct {
	runs   int
	peak   float64       // in events a second; 0 to measure it
	shares []int         // of the peak, in per cent
	warmUp time.Duration // the part of each load that is left out
	after  time.Duration // the part that counts
}

// latencyFigures are the latencies of a sink on a table with the indexes of one variant.
type latencyFigures struct {
	Sink    string `json:"sink"`
	Variant string `json:"indexes"`
	Lanes   int    `json:"lanes"`
	// Peak is the sink's own highest rate, in rows a second.
	Peak  float64       `json:"peak_rows_per_second"`
	Loads []latencyLoad `json:"loads"`
}

// latencyLoad is one rate, offered in several runs.
type latencyLoad struct {
	Share  int         `json:"percent_of_peak"`
	Rate   int         `json:"events_per_second"`
	Runs   []latencies `json:"runs"`
	Median latencies   `json:"median"` // of each figure by itself
}

// latencies are from an event's timestamp to its commit, in milliseconds.
type latencies struct {
	Events int64   `json:"events"` // that count: those of the warm-up don't
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
	P999   float64 `json:"p99_9_ms"`
	Max    float64 `json:"max_ms"`
	// BehindMillis is from the last event's timestamp to the last commit. Much more than a flush interval means that the load was too much.
	BehindMillis float64 `json:"behind_ms"`
}

// system is a kind of sink under test: ours, or another beside it.
type system struct {
	name string
	// start starts one that stores a topic's events in a database, and returns when it takes them in. Its group is named like the topic.
	start func(ctx context.Context, db *database, topic string) (feeder, error)
	// verify requires that so many events are stored, each once.
	verify func(ctx context.Context, db *database, events int) error
}

// feeder is a sink that runs.
type feeder interface {
	// wait waits for a tick. The error says that the sink ended by itself, or ctx did.
	wait(ctx context.Context, tick <-chan time.Time) error
	// end stops the sink, after what was measured has ended with err, and returns why either failed.
	end(ctx context.Context, err error) error
}

// ours is a worker with the settings of the benchmark.
func (b *bench) ours() system {
	return system{
		name: "auditsink",
		start: func(ctx context.Context, db *database, topic string) (feeder, error) {
			w, err := b.startWorker(ctx, db, topic, topic, topic)
			if err != nil {
				return nil, err
			}
			if _, err := w.awaitReady(ctx); err != nil {
				return nil, w.end(ctx, err)
			}
			return w, nil
		},
		verify: func(ctx context.Context, db *database, events int) error { return db.verify(ctx, events) },
	}
}

// measureLatencies measures our worker with the indexes of each variant asked for, at shares of the peak that it reaches with them.
func (b *bench) measureLatencies(ctx context.Context) (all []latencyFigures, err error) {
	err = b.withCommitTimes(ctx, func() error {
		for _, variant := range b.ingestVariants {
			peak := b.latency.peak
			if peak == 0 {
				if peak, err = b.peakRate(ctx, variant); err != nil {
					return fmt.Errorf("measure the peak rate: %w", err)
				}
			}
			f, err := b.latenciesOf(ctx, b.ours(), variant, peak)
			if err != nil {
				return err
			}
			all = append(all, *f)
		}
		return nil
	})
	return all, err
}

// withCommitTimes has PostgreSQL note when each transaction committed, for as long as do takes. That costs it something, and restarts.
func (b *bench) withCommitTimes(ctx context.Context, do func() error) error {
	alter := func(ctx context.Context, statement string) error {
		conn, err := pgx.Connect(ctx, b.postgres.URL("postgres"))
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		_, err = conn.Exec(ctx, statement)
		if err = errors.Join(err, conn.Close(ctx)); err != nil {
			return fmt.Errorf("change a setting of PostgreSQL: %w", err)
		}
		return b.postgres.Restart(ctx)
	}
	if err := alter(ctx, `ALTER SYSTEM SET track_commit_timestamp = on`); err != nil {
		return err
	}
	err := do()
	if ctx.Err() != nil { // the server is about to go
		return err
	}
	return errors.Join(err, alter(ctx, `ALTER SYSTEM RESET track_commit_timestamp`))
}

// peakRate is how many rows a second our worker stores of a topic that is full, after the first fifth. It has to be called by withCommitTimes.
func (b *bench) peakRate(ctx context.Context, variant string) (rowsPerSecond float64, err error) {
	topic := "bench-peak-" + variant
	events := b.eventsOf(variant)
	say("latency: indexes: %s: measuring the peak rate with %d events", variant, events)
	producer, err := b.newTopic(ctx, topic, b.lanes)
	if err != nil {
		return 0, err
	}
	defer producer.Close()
	if err := fill(ctx, producer, topic, events); err != nil {
		return 0, err
	}
	err = b.onDatabase(ctx, variant, func(db *database) error {
		if _, _, err := b.store(ctx, db, topic, topic, events); err != nil {
			return err
		}
		progress, err := db.commits(ctx) // a look every 50 ms can miss how a small load got stored
		if err != nil {
			return err
		}
		if rowsPerSecond = ratesOf(progress, 1, events).Steady; rowsPerSecond == 0 {
			return fmt.Errorf("%d events are too few: the last four fifths were stored by one commit", events)
		}
		return nil
	})
	return rowsPerSecond, err
}

// latenciesOf measures a system at shares of a peak, the loads of each run in turn, so that what slows the machine for a while slows all. It has to be
// called by withCommitTimes.
func (b *bench) latenciesOf(ctx context.Context, s system, variant string, peak float64) (*latencyFigures, error) {
	f := &latencyFigures{Sink: s.name, Variant: variant, Lanes: b.lanes, Peak: peak}
	for _, share := range b.latency.shares {
		f.Loads = append(f.Loads, latencyLoad{Share: share, Rate: max(int(peak*float64(share)/100), 1)})
	}
	for run := range b.latency.runs {
		for i := range f.Loads {
			load := &f.Loads[i]
			topic := fmt.Sprintf("bench-latency-%s-%s-%d-%d", s.name, variant, run+1, load.Share)
			l, err := b.latenciesAt(ctx, s, variant, topic, load.Rate)
			if err != nil {
				return nil, fmt.Errorf("%s, indexes: %s, %d events/s: %w", s.name, variant, load.Rate, err)
			}
			say("latency: %s, indexes: %s: run %d, %d events/s: %s", s.name, variant, run+1, load.Rate, l)
			load.Runs = append(load.Runs, l)
		}
	}
	for i := range f.Loads {
		f.Loads[i].Median = medianLatencies(f.Loads[i].Runs)
	}
	return f, nil
}

// latenciesAt measures a system under one load, on a topic and a database of their own.
func (b *bench) latenciesAt(ctx context.Context, s system, variant, topic string, rate int) (l latencies, err error) {
	producer, err := b.newTopic(ctx, topic, b.lanes)
	if err != nil {
		return l, err
	}
	defer producer.Close()
	defer func() { err = errors.Join(err, b.deleteTopic(context.WithoutCancel(ctx), topic)) }()
	err = b.onDatabase(ctx, variant, func(db *database) error {
		if err := db.checkpoint(ctx); err != nil {
			return err
		}
		sink, err := s.start(ctx, db, topic)
		if err != nil {
			return err
		}
		var since time.Time
		var events int64
		load, stop := errgroup.Group{}, make(chan struct{})
		load.Go(func() (err error) {
			events, err = pace(ctx, producer, topic, rate, stop)
			return err
		})
		err = sink.wait(ctx, time.After(b.latency.warmUp))
		since = time.Now()
		if err == nil {
			err = sink.wait(ctx, time.After(b.latency.after))
		}
		close(stop)
		if err = errors.Join(err, load.Wait()); err == nil {
			err = awaitRows(ctx, sink, db, events)
		}
		if err := sink.end(ctx, err); err != nil {
			return err
		}
		if err := s.verify(ctx, db, int(events)); err != nil {
			return err
		}
		l, err = db.latencies(ctx, since)
		return err
	})
	return l, err
}

// awaitRows waits until so many rows are there. Counting them is dear, and no part of what is measured: it begins when the load has ended.
func awaitRows(ctx context.Context, sink feeder, db *database, rows int64) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for last, moved := int64(-1), time.Now(); ; {
		if err := sink.wait(ctx, tick.C); err != nil {
			return err
		}
		var stored int64
		if err := db.conn.QueryRow(ctx, `SELECT count(*) FROM audit_log`).Scan(&stored); err != nil {
			return fmt.Errorf("count the rows: %w", err)
		}
		switch {
		case stored >= rows:
			return nil
		case stored != last:
			last, moved = stored, time.Now()
		case time.Since(moved) > stalled:
			return fmt.Errorf("%d of %d events are stored, and none for %s", stored, rows, stalled)
		}
	}
}

// latencies are those of the events since a moment, as PostgreSQL knows them, whichever sink stored them: from the event's timestamp, which is when it was
// due, to its transaction's commit. The server notes that moment when it writes the commit to the WAL, right before it waits for the disk.
func (db *database) latencies(ctx context.Context, since time.Time) (l latencies, err error) {
	var p []float64
	var behind *float64
	err = db.conn.QueryRow(ctx, `
		SELECT count(*), percentile_disc(ARRAY[0.5, 0.99, 0.999, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM committed - produced)::float8 * 1000),
			extract(epoch FROM max(committed) - max(produced))::float8 * 1000
		FROM (SELECT timestamp, pg_xact_commit_timestamp(xmin) FROM audit_log WHERE timestamp >= $1) AS stored (produced, committed)`, since).
		Scan(&l.Events, &p, &behind)
	if err != nil {
		return l, fmt.Errorf("read the latencies: %w", err)
	}
	if behind == nil || len(p) != 4 {
		return l, errors.New("read the latencies: no event is as young as those that count")
	}
	l.P50, l.P99, l.P999, l.Max, l.BehindMillis = p[0], p[1], p[2], p[3], *behind
	return l, nil
}

func medianLatencies(runs []latencies) latencies {
	return latencies{
		Events:       int64(median(runs, func(l latencies) float64 { return float64(l.Events) })),
		P50:          median(runs, func(l latencies) float64 { return l.P50 }),
		P99:          median(runs, func(l latencies) float64 { return l.P99 }),
		P999:         median(runs, func(l latencies) float64 { return l.P999 }),
		Max:          median(runs, func(l latencies) float64 { return l.Max }),
		BehindMillis: median(runs, func(l latencies) float64 { return l.BehindMillis }),
	}
}

// String is a run's figures in a line.
func (l latencies) String() string {
	return fmt.Sprintf("p50 %.0f, p99 %.0f, p99.9 %.0f, max %.0f ms; %.0f ms behind at the end", l.P50, l.P99, l.P999, l.Max, l.BehindMillis)
}

func printLatencies(out *bytes.Buffer, all []latencyFigures) {
	for _, f := range all {
		fmt.Fprintf(out, "\nlatency: %s, indexes: %s, %d lanes, peak %.0f rows/s; from an event's timestamp to its commit, in ms, medians of %d runs; each event one row\n",
			f.Sink, f.Variant, f.Lanes, f.Peak, len(f.Loads[0].Runs))
		fmt.Fprintf(out, "%-6s %9s %9s %8s %8s %8s %8s %8s  %s\n", "load", "events/s", "events", "p50", "p99", "p99.9", "max", "behind", "p99 of the runs")
		for _, load := range f.Loads {
			var each []float64
			for _, r := range load.Runs {
				each = append(each, r.P99)
			}
			m := load.Median
			fmt.Fprintf(out, "%4d %% %9d %9d %8.0f %8.0f %8.0f %8.0f %8.0f  %.0f to %.0f\n",
				load.Share, load.Rate, m.Events, m.P50, m.P99, m.P999, m.Max, m.BehindMillis, slices.Min(each), slices.Max(each))
		}
	}
}
