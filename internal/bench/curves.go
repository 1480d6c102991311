package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/partitions"
)

// curvesPlan is which numbers of lanes, workers and table partitions are measured.
type curvesPlan struct {
	lanes, workers, partitions []int
	variants                   []string
}

// The curves, which are scenarios too.
const (
	lanesCurve      = "lanes"
	workersCurve    = "workers"
	partitionsCurve = "partitions"
)

// curveFigures are a round at one place of a curve.
type curveFigures struct {
	Curve string `json:"curve"`
	N     int    `json:"n"` // lanes, workers or partitions
	// Spread is whether the events are of all partitions in turn, and not of the newest alone.
	Spread bool `json:"spread,omitempty"`
	figures
}

// measureCurve runs the rounds of a curve: in each, the ceiling and then the worker at each place.
func (b *bench) measureCurve(ctx context.Context, curve string) (all []curveFigures, err error) {
	for _, variant := range b.curves.variants {
		var runs []curveFigures
		switch curve {
		case lanesCurve:
			runs, err = b.lanesCurve(ctx, variant)
		case workersCurve:
			runs, err = b.workersCurve(ctx, variant)
		case partitionsCurve:
			runs, err = b.partitionsCurve(ctx, variant)
		}
		if err != nil {
			return nil, fmt.Errorf("indexes: %s: %w", variant, err)
		}
		all = append(all, runs...)
	}
	return all, nil
}

// lanesCurve stores topics of the same events, parted into more and more lanes. The ceiling knows no lanes, and is measured before and after all of them.
func (b *bench) lanesCurve(ctx context.Context, variant string) ([]curveFigures, error) {
	events := b.eventsOf(variant)
	topic := func(lanes int) string { return fmt.Sprintf("bench-lanes-%s-%d", variant, lanes) }
	plain, err := b.preload(ctx, topic(0), events)
	if err != nil {
		return nil, err
	}
	for _, lanes := range b.curves.lanes {
		if err := b.fillFrom(ctx, topic(lanes), newSource(lanes, now), events); err != nil {
			return nil, err
		}
	}
	return b.along(ctx, lanesCurve, b.curves.lanes, variant, plain, func(lanes, _ int, f *figures) error {
		return b.endToEnd(ctx, &load{topic: topic(lanes), events: events}, f)
	})
}

// along measures a curve whose places all have the same table, round by round.
func (b *bench) along(ctx context.Context, curve string, at []int, variant string, plain *load, store func(n, round int, f *figures) error) (all []curveFigures, err error) {
	for round := range b.rounds {
		places, err := b.between(ctx, plain, variant, func() (places []curveFigures, err error) {
			for _, n := range at {
				f := b.place(curve, n, variant, round, plain)
				if err := store(n, round, &f.figures); err != nil {
					return nil, fmt.Errorf("%d %s: %w", n, curve, err)
				}
				places = append(places, f)
			}
			return places, nil
		})
		if err != nil {
			return nil, err
		}
		all = append(all, places...)
	}
	return all, nil
}

// between measures the ceiling, then the places of a curve, and the ceiling again, so that a machine that becomes slower meanwhile favours neither.
func (b *bench) between(ctx context.Context, l *load, variant string, measure func() ([]curveFigures, error)) ([]curveFigures, error) {
	before, err := b.ceiling(ctx, l, variant, b.connections)
	if err != nil {
		return nil, fmt.Errorf("ceiling: %w", err)
	}
	places, err := measure()
	if err != nil {
		return nil, err
	}
	after, err := b.ceiling(ctx, l, variant, b.connections)
	if err != nil {
		return nil, fmt.Errorf("ceiling: %w", err)
	}
	for i := range places {
		f := &places[i]
		f.Ceilings = []rates{before, after}
		f.compare()
		say("%s: %s: %s: round %d: %s", f.Curve, f.Variant, f.label(), f.Round, f.figures)
	}
	return places, nil
}

// workersCurve stores a topic by more and more workers.
func (b *bench) workersCurve(ctx context.Context, variant string) ([]curveFigures, error) {
	plain, err := b.preload(ctx, "bench-workers-"+variant, b.eventsOf(variant))
	if err != nil {
		return nil, err
	}
	return b.along(ctx, workersCurve, b.curves.workers, variant, plain, func(n, round int, f *figures) error {
		return b.storeTogether(ctx, n, fmt.Sprintf("%s-%d-%d", plain.topic, n, round+1), f)
	})
}

// storeTogether lets workers share a topic's lanes, and then store all events. CPUSeconds is the sum of theirs, PeakMB the largest one's.
func (b *bench) storeTogether(ctx context.Context, n int, topic string, f *figures) (err error) {
	s := newSource(b.lanes, now)
	if err := b.makeTopic(ctx, topic, b.lanes); err != nil {
		return err
	}
	admin, err := b.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	defer func() { // the next one needs the space
		_, failed := admin.DeleteTopic(context.WithoutCancel(ctx), topic)
		err = errors.Join(err, failed)
	}()
	g, err := b.closeGate(ctx, topic, b.lanes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close(ctx)) }()
	if err := b.publish(ctx, topic, s, f.Events); err != nil {
		return err
	}
	return b.onDatabase(ctx, f.Variant, func(db *database) error {
		if err := db.checkpoint(ctx); err != nil {
			return err
		}
		var workers []*worker
		progress, err := func() ([]point, error) {
			for i := range n {
				w, err := b.startWorker(ctx, db, topic, topic, fmt.Sprintf("%s-%d", topic, i+1), b.copies(n))
				if err != nil {
					return nil, err
				}
				workers = append(workers, w)
			}
			if err := b.awaitGroup(ctx, topic, workers, b.lanes); err != nil {
				return nil, err
			}
			if err := g.open(ctx); err != nil {
				return nil, err
			}
			return workers[0].watch(ctx, db, int64(f.Events)+g.records())
		}()
		for _, w := range workers {
			err = errors.Join(err, w.end(ctx, nil))
			f.CPUSeconds += w.cpuSeconds()
			f.PeakMB = max(f.PeakMB, float64(w.peak)/1e6)
		}
		if err != nil {
			return err
		}
		f.Worker = ratesOf(progress, g.records()+1, f.Events)
		return db.verify(ctx, f.Events)
	})
}

// partitionsCurve stores events of the newest of many partitions, and of all of them in turn. The ceiling stores the same.
func (b *bench) partitionsCurve(ctx context.Context, variant string) (all []curveFigures, err error) {
	for _, n := range b.curves.partitions {
		for _, spread := range []bool{false, true} {
			if spread && n == 1 {
				continue // it is the same
			}
			runs, err := b.partitioned(ctx, variant, n, spread)
			if err != nil {
				return nil, fmt.Errorf("%d partitions: %w", n, err)
			}
			all = append(all, runs...)
		}
	}
	return all, nil
}

func (b *bench) partitioned(ctx context.Context, variant string, n int, spread bool) (all []curveFigures, err error) {
	when := now
	if spread {
		when = inMonths(n, b.lanes)
	}
	l, err := b.preloadFrom(ctx, fmt.Sprintf("bench-partitions-%s-%d-%t", variant, n, spread), newSource(b.lanes, when), b.eventsOf(variant))
	if err != nil {
		return nil, err
	}
	l.months = n - 1
	old := *b // whose workers take events of any age
	old.settings = append(slices.Clone(b.settings), "AUDITSINK_RETENTION_HORIZON_DAYS="+strconv.Itoa(int(horizon/(24*time.Hour))))
	for round := range b.rounds {
		places, err := b.between(ctx, l, variant, func() ([]curveFigures, error) {
			places := []curveFigures{b.place(partitionsCurve, n, variant, round, l)}
			places[0].Spread = spread
			return places, old.endToEnd(ctx, l, &places[0].figures)
		})
		if err != nil {
			return nil, err
		}
		all = append(all, places...)
	}
	return all, nil
}

// inMonths spreads events over the current month and those before it: each lane has one of each in turn.
func inMonths(n, lanes int) func(int) time.Time {
	current := monthOf(time.Now())
	return func(i int) time.Time {
		back := i / lanes % n
		if back == 0 {
			return time.Now()
		}
		// Not the first seconds, for an event happens up to two before the time that it is made for.
		return current.AddDate(0, -back, 14).Add(time.Duration(i) * time.Millisecond)
	}
}

func monthOf(t time.Time) time.Time {
	year, month, _ := t.UTC().Date()
	return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
}

// onTable is onDatabase with the partitions of a load.
func (b *bench) onTable(ctx context.Context, l *load, variant string, do func(*database) error) error {
	return b.onDatabase(ctx, variant, func(db *database) error {
		if err := db.addMonths(ctx, l.months); err != nil {
			return err
		}
		return do(db)
	})
}

// addMonths makes so many partitions before the current one.
func (db *database) addMonths(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	pool, err := pgxpool.New(ctx, db.url)
	if err != nil {
		return fmt.Errorf("open a connection pool: %w", err)
	}
	defer pool.Close()
	months := make([]time.Time, n)
	for i := range months {
		months[i] = monthOf(time.Now()).AddDate(0, -1-i, 0)
	}
	_, err = partitions.EnsureFor(ctx, pool, time.Now(), horizon, partitions.Schedule{}, months)
	return err
}

// place begins a place's figures.
func (b *bench) place(curve string, n int, variant string, round int, l *load) curveFigures {
	return curveFigures{Curve: curve, N: n, figures: figures{Variant: variant, Round: round + 1, Events: l.events, EventBytes: l.bytes / float64(l.events)}}
}

// label is the place.
func (f curveFigures) label() string {
	switch {
	case f.Curve == partitionsCurve && f.Spread:
		return fmt.Sprintf("%d, rows in all", f.N)
	case f.Curve == partitionsCurve:
		return fmt.Sprintf("%d, rows in one", f.N)
	}
	return strconv.Itoa(f.N)
}

// curveMedians takes the medians of the rounds at each place, in the order of the first round.
func curveMedians(runs []curveFigures) (all []curveFigures) {
	type place struct {
		curve, variant string
		n              int
		spread         bool
	}
	var places []place
	rounds := map[place][]figures{}
	for _, f := range runs {
		p := place{f.Curve, f.Variant, f.N, f.Spread}
		if rounds[p] == nil {
			places = append(places, p)
		}
		rounds[p] = append(rounds[p], f.figures)
	}
	for _, p := range places {
		all = append(all, curveFigures{Curve: p.curve, N: p.n, Spread: p.spread, figures: medians(rounds[p])[0]})
	}
	return all
}

func printCurves(out *bytes.Buffer, runs, medians []curveFigures) {
	if len(runs) == 0 {
		return
	}
	fmt.Fprintf(out, "\ncurves: steady rows/s; the ceiling over the same table, whose rows no lanes or workers part\n%-10s %-8s %-18s %-7s %9s  %8s %8s %6s  %11s %8s\n",
		"curve", "indexes", "n", "round", "events", "ceiling", "worker", "ratio", "CPU s/mio", "peak MB")
	for _, f := range slices.Concat(runs, medians) {
		round := "median"
		if f.Round > 0 {
			round = strconv.Itoa(f.Round)
		}
		fmt.Fprintf(out, "%-10s %-8s %-18s %-7s %9d  %8.0f %8.0f %6.2f  %11.2f %8.0f\n", f.Curve, f.Variant, f.label(), round, f.Events,
			f.Ceiling.Steady, f.Worker.Steady, f.Ratio.Steady, f.CPUPerMillion, f.PeakMB)
	}
}
