package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sync/errgroup"

	"auditsink/internal/kafka"
)

// catchUpFigures are how a worker caught up with a backlog while as many events a second as before kept coming.
type catchUpFigures struct {
	Variant string `json:"indexes"`
	Lanes   int    `json:"lanes"`
	Rate    int    `json:"events_per_second"`
	Events  int64  `json:"events"`
	// NormalLag is the most records that were acknowledged and not stored before, PeakLag the same from the worker's start on.
	NormalLag int64 `json:"normal_lag"`
	PeakLag   int64 `json:"peak_lag"`
	// CaughtUpSeconds is from the start of the worker's process until the lag was down to NormalLag; RowsPerSecond what it stored meanwhile.
	CaughtUpSeconds float64 `json:"caught_up_seconds"`
	RowsPerSecond   float64 `json:"rows_per_second"`
	// PeakMiB is the worker's peak resident memory.
	PeakMiB float64 `json:"peak_mib"`
}

// measureCatchUp takes the worker away, fills the topic, and gives it another one. It fails when an event isn't exactly one row.
func (b *bench) measureCatchUp(ctx context.Context, variant string) (*catchUpFigures, error) {
	topic := "bench-catchup-" + variant
	load, err := b.newTopic(ctx, topic, b.recovery.lanes)
	if err != nil {
		return nil, err
	}
	defer load.Close()
	backlog, err := b.newProducer()
	if err != nil {
		return nil, err
	}
	defer backlog.Close()
	f := &catchUpFigures{Variant: variant, Lanes: b.recovery.lanes, Rate: b.recovery.rate}
	return f, b.onDatabase(ctx, variant, func(db *database) error {
		c := &catchingUp{catchUpFigures: f, bench: b, db: db, topic: topic, load: load, backlog: backlog}
		w, err := c.start(ctx)
		if err != nil {
			return err
		}
		var paced errgroup.Group
		var live int64
		stop := make(chan struct{})
		paced.Go(func() (err error) {
			live, err = pace(ctx, load, topic, f.Rate, stop)
			return err
		})
		err = c.before(ctx, w)
		if w = nil; err == nil {
			w, err = c.after(ctx)
		}
		close(stop)
		if err = errors.Join(err, paced.Wait()); w == nil {
			return err
		}
		if f.Events = live + backlog.Acknowledged(); err == nil {
			_, err = w.watch(ctx, db, f.Events)
		}
		if err := w.end(ctx, err); err != nil {
			return err
		}
		f.PeakMiB = float64(w.peak) / (1 << 20)
		return db.verify(ctx, int(f.Events))
	})
}

// catchingUp is one under way.
type catchingUp struct {
	*catchUpFigures
	bench         *bench
	db            *database
	topic         string
	load, backlog *kafka.Producer
}

// start starts a worker and waits until it takes events in.
func (c *catchingUp) start(ctx context.Context) (*worker, error) {
	w, err := c.bench.startWorker(ctx, c.db, c.topic, c.topic, c.topic)
	if err != nil {
		return nil, err
	}
	if _, err := w.awaitReady(ctx); err != nil {
		return nil, w.end(ctx, err)
	}
	return w, nil
}

// before looks at the usual lag and ends the worker.
func (c *catchingUp) before(ctx context.Context, w *worker) error {
	end := time.Now().Add(c.bench.recovery.before)
	err := c.watch(ctx, w, func(lag, _ int64) bool {
		c.NormalLag = max(c.NormalLag, lag)
		return time.Now().After(end)
	})
	return w.end(ctx, err)
}

// after makes the backlog and has a worker catch up with it. The worker runs when it returns without an error.
func (c *catchingUp) after(ctx context.Context) (w *worker, err error) {
	events := int(math.Ceil(c.bench.recovery.backlog.Seconds() * float64(c.Rate)))
	say("recovery: indexes: %s: filling the topic with %d events", c.Variant, events)
	if err := fill(ctx, c.backlog, c.topic, events); err != nil {
		return nil, err
	}
	if err := c.db.checkpoint(ctx); err != nil {
		return nil, err
	}
	already, err := c.db.stored(ctx)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if w, err = c.bench.startWorker(ctx, c.db, c.topic, c.topic, c.topic+"-again"); err != nil {
		return nil, err
	}
	err = c.watch(ctx, w, func(lag, stored int64) bool {
		c.PeakLag = max(c.PeakLag, lag)
		c.CaughtUpSeconds = time.Since(begun).Seconds()
		c.RowsPerSecond = float64(stored-already) / c.CaughtUpSeconds
		return lag <= c.NormalLag
	})
	if err != nil {
		return nil, w.end(ctx, err)
	}
	say("recovery: indexes: %s: caught up after %.1f s, %.0f rows/s", c.Variant, c.CaughtUpSeconds, c.RowsPerSecond)
	return w, nil
}

// watch shows how many records are acknowledged and not stored, and how many are stored, until that is enough.
func (c *catchingUp) watch(ctx context.Context, w *worker, enough func(lag, stored int64) bool) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for last, moved := int64(-1), time.Now(); ; {
		if err := w.wait(ctx, tick.C); err != nil {
			return err
		}
		stored, err := c.db.stored(ctx)
		if err != nil {
			return err
		}
		published := c.load.Acknowledged() + c.backlog.Acknowledged() // after what is stored: the lag may be overstated, never understated
		if stored != last {
			last, moved = stored, time.Now()
		}
		if enough(max(published-stored, 0), stored) {
			return nil
		}
		if time.Since(moved) > stalled {
			return fmt.Errorf("the worker has stored %d records, and none for %s", stored, stalled)
		}
	}
}

func printCatchUps(out *bytes.Buffer, all []catchUpFigures) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(out, "\nrecovery: %d lanes; a backlog caught up with while %d events/s keep coming; each event one row\n", all[0].Lanes, all[0].Rate)
	fmt.Fprintf(out, "%-10s %10s %11s %11s %13s %9s %9s\n", "indexes", "events", "usual lag", "peak lag", "caught up, s", "rows/s", "peak MiB")
	for _, f := range all {
		fmt.Fprintf(out, "%-10s %10d %11d %11d %13.1f %9.0f %9.0f\n", f.Variant, f.Events, f.NormalLag, f.PeakLag, f.CaughtUpSeconds, f.RowsPerSecond, f.PeakMiB)
	}
}
