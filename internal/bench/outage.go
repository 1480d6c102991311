package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/kafka"
)

// outagePlan is for how long the database is there, gone, and there again, under so many events a second.
type outagePlan struct {
	lanes, rate         int
	before, down, after time.Duration
}

// outageFigures are how a worker came through.
type outageFigures struct {
	Lanes  int   `json:"lanes"`
	Rate   int   `json:"events_per_second"`
	Events int64 `json:"events"`
	// DownSeconds is from the database's end until it answers again.
	DownSeconds float64 `json:"down_seconds"`
	// PeakLag is the most records that were acknowledged and not stored; NormalLag is the same before the outage.
	PeakLag   int64 `json:"peak_lag"`
	NormalLag int64 `json:"normal_lag"`
	// CaughtUpSeconds is from the database's answering again until the lag is down to NormalLag, under the load that goes on; EmptySeconds from
	// the load's end until nothing is left.
	CaughtUpSeconds float64 `json:"caught_up_seconds"`
	EmptySeconds    float64 `json:"empty_seconds"`
	// NotReadySeconds is the longest that /readyz said no, SilentSeconds the longest between two of its answers, whatever they said.
	NotReadySeconds float64 `json:"not_ready_seconds"`
	SilentSeconds   float64 `json:"silent_seconds"`
	// ReadyAgainSeconds is from the database's answering again until /readyz says yes.
	ReadyAgainSeconds float64 `json:"ready_again_seconds"`
	// PeakMiB is the worker's peak resident memory.
	PeakMiB float64 `json:"peak_mib"`
}

// surviveOutage takes the database away from a worker under load. It fails when the worker ended, or an event isn't exactly one row.
func (b *bench) surviveOutage(ctx context.Context) (*outageFigures, error) {
	const topic = "bench-outage"
	producer, err := b.newTopic(ctx, topic, b.outage.lanes)
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	f := &outageFigures{Lanes: b.outage.lanes, Rate: b.outage.rate}
	return f, b.onDatabase(ctx, allIndexes, func(db *database) error {
		w, err := b.startWorker(ctx, db, topic, topic, topic)
		if err != nil {
			return err
		}
		if err := w.end(ctx, b.throughOutage(ctx, db, w, producer, topic, f)); err != nil {
			return err
		}
		f.PeakMiB = float64(w.peak) / (1 << 20)
		if err := db.reconnect(ctx); err != nil {
			return err
		}
		return db.verify(ctx, int(f.Events))
	})
}

// throughOutage returns when all events are stored. Four go on side by side: the load, the outage, the eye on readiness, and that on the lag.
func (b *bench) throughOutage(ctx context.Context, db *database, w *worker, producer *kafka.Producer, topic string, f *outageFigures) error {
	address, err := w.awaitReady(ctx)
	if err != nil {
		return err
	}
	say("outage: %d events/s; the database goes in %s, for %s", f.Rate, b.outage.before, b.outage.down)
	o := outage{outageFigures: f, worker: w, producer: producer, stop: make(chan struct{}), stored: make(chan struct{})}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		o.Events, err = pace(ctx, producer, topic, o.Rate, o.stop)
		o.ended.Store(ptr(time.Now()))
		return err
	})
	group.Go(func() error { return o.happen(ctx, b) })
	group.Go(func() error { return o.watchReadiness(ctx, address) })
	group.Go(func() error {
		defer close(o.stored)
		return o.watchLag(ctx, db.url)
	})
	return group.Wait()
}

func ptr[T any](v T) *T { return &v }

// outage is one under way.
type outage struct {
	*outageFigures
	worker   *worker
	producer *kafka.Producer
	stop     chan struct{}             // closed to end the load
	stored   chan struct{}             // closed when all is stored
	gone     atomic.Bool               // the database was taken away, if only for a while
	back     atomic.Pointer[time.Time] // since when it answers again
	ended    atomic.Pointer[time.Time] // since when the load has ended; Events is known then
}

// happen takes the database away, gives it back, and ends the load.
func (o *outage) happen(ctx context.Context, b *bench) error {
	if err := sleep(ctx, b.outage.before); err != nil {
		return err
	}
	o.gone.Store(true)
	begin := time.Now()
	if err := b.postgres.Immediate(); err != nil {
		return err
	}
	say("outage: the database is gone")
	if err := sleep(ctx, b.outage.down); err != nil {
		return err
	}
	if err := b.postgres.Restart(ctx); err != nil {
		return err
	}
	o.back.Store(ptr(time.Now()))
	o.DownSeconds = time.Since(begin).Seconds()
	say("outage: the database is back")
	err := sleep(ctx, b.outage.after)
	close(o.stop)
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// watchReadiness asks the worker until all is stored.
func (o *outage) watchReadiness(ctx context.Context, address string) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	ready, answered := time.Now(), time.Now()
	for {
		select {
		case <-o.stored:
			return nil
		default:
		}
		if err := o.worker.wait(ctx, tick.C); err != nil {
			return err
		}
		status, err := get(ctx, address+"/readyz")
		now := time.Now()
		if err == nil {
			o.SilentSeconds = max(o.SilentSeconds, now.Sub(answered).Seconds())
			answered = now
		}
		if status != http.StatusOK {
			continue
		}
		if back := o.back.Load(); back != nil && o.ReadyAgainSeconds == 0 {
			o.ReadyAgainSeconds = now.Sub(*back).Seconds()
		}
		o.NotReadySeconds = max(o.NotReadySeconds, now.Sub(ready).Seconds())
		ready = now
	}
}

// watchLag holds what was acknowledged against what is stored, until that is all there is.
func (o *outage) watchLag(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return fmt.Errorf("open a connection pool: %w", err)
	}
	defer pool.Close()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var stored int64
	moved := time.Now()
	for {
		if err := o.worker.wait(ctx, tick.C); err != nil {
			return err
		}
		ended := o.ended.Load() // before the lag is looked at, which may be 0 for a moment under load too
		now, err := storedIn(ctx, pool)
		switch {
		case err != nil && o.gone.Load(): // nobody can tell, so nothing has moved
		case err != nil:
			return err
		case now != stored:
			stored, moved = now, time.Now()
		}
		lag := max(o.producer.Acknowledged()-stored, 0)
		o.PeakLag = max(o.PeakLag, lag)
		if !o.gone.Load() {
			o.NormalLag = max(o.NormalLag, lag)
		}
		back := o.back.Load()
		if err == nil && back != nil && o.CaughtUpSeconds == 0 && lag <= o.NormalLag {
			o.CaughtUpSeconds = time.Since(*back).Seconds()
			say("outage: caught up")
		}
		if ended != nil && stored >= o.Events {
			o.EmptySeconds = time.Since(*ended).Seconds()
			return nil
		}
		if back != nil && time.Since(moved) > stalled+time.Since(*back) || back == nil && !o.gone.Load() && time.Since(moved) > stalled {
			return errors.New("the worker stores nothing any more")
		}
	}
}

func storedIn(ctx context.Context, pool *pgxpool.Pool) (records int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := pool.QueryRow(ctx, storedRecords).Scan(&records); err != nil {
		return 0, fmt.Errorf("read the positions: %w", err)
	}
	return records, nil
}

func (f *outageFigures) print(out *bytes.Buffer) {
	if f == nil {
		return
	}
	fmt.Fprintf(out, "\noutage: %d lanes, %d events/s, all indexes; the worker lived through it, every event is one row, none is in quarantine\n", f.Lanes, f.Rate)
	for _, line := range []struct {
		name   string
		value  float64
		digits int
		unit   string
	}{
		{"database away", f.DownSeconds, 1, "s"},
		{"events", float64(f.Events), 0, ""},
		{"lag before, at most", float64(f.NormalLag), 0, "records"},
		{"lag, at most", float64(f.PeakLag), 0, "records"},
		{"database back to lag as before", f.CaughtUpSeconds, 1, "s"},
		{"end of load to lag 0", f.EmptySeconds, 1, "s"},
		{"not ready, longest", f.NotReadySeconds, 1, "s"},
		{"database back to ready", f.ReadyAgainSeconds, 1, "s"},
		{"/readyz without an answer, longest", f.SilentSeconds, 1, "s"},
		{"peak memory", f.PeakMiB, 0, "MiB"},
	} {
		fmt.Fprintf(out, "%-36s %10.*f %s\n", line.name, line.digits, line.value, line.unit)
	}
}
