package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"auditsink/config"
)

// scalePlan is how many workers there are one after the other, each for how long, under so many events a second.
type scalePlan struct {
	lanes, rate int
	workers     []int
	each        time.Duration
}

// scaleFigures are for how long lanes stood still meanwhile.
type scaleFigures struct {
	Lanes  int   `json:"lanes"`
	Rate   int   `json:"events_per_second"`
	Events int64 `json:"events"`
	// FlushSeconds is AUDITSINK_FLUSH_INTERVAL, for which a lane stands still anyway.
	FlushSeconds float64      `json:"flush_interval_seconds"`
	Phases       []scalePhase `json:"phases"`
	// PeakMiB is the peak resident memory of the largest worker.
	PeakMiB float64 `json:"peak_mib"`
}

// scalePhase is a change of the number of workers, and the time after it.
type scalePhase struct {
	From    int     `json:"from"`
	To      int     `json:"to"`
	Seconds float64 `json:"seconds"`
	// LongestSeconds is the longest that a lane's position did not move, MedianSeconds the median of the lanes' longest.
	LongestSeconds float64 `json:"longest_seconds"`
	MedianSeconds  float64 `json:"median_seconds"`
}

// lookInterval is how often the scenario reads the positions of all lanes.
const lookInterval = 50 * time.Millisecond

// measureScaling adds and removes workers under load. It fails when one ends badly, or an event isn't exactly one row.
func (b *bench) measureScaling(ctx context.Context) (*scaleFigures, error) {
	const topic = "bench-scale"
	producer, err := b.newTopic(ctx, topic, b.scale.lanes)
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	f := &scaleFigures{Lanes: b.scale.lanes, Rate: b.scale.rate, FlushSeconds: config.Default().FlushInterval.Seconds()}
	return f, b.onDatabase(ctx, allIndexes, func(db *database) error {
		s := &scaling{scaleFigures: f, bench: b, db: db, topic: topic}
		stop := make(chan struct{})
		var load errgroup.Group
		load.Go(func() (err error) {
			f.Events, err = pace(ctx, producer, topic, f.Rate, stop)
			return err
		})
		err := s.phases(ctx)
		close(stop)
		err = errors.Join(err, load.Wait())
		if err == nil {
			_, err = s.workers[0].watch(ctx, db, f.Events)
		}
		s.remove(ctx, 0)
		if err = errors.Join(err, s.leaving.Wait()); err != nil {
			return err
		}
		return db.verify(ctx, int(f.Events))
	})
}

// scaling is one under way.
type scaling struct {
	*scaleFigures
	bench   *bench
	db      *database
	topic   string
	started int
	workers []*worker // those that run, the oldest first
	leaving errgroup.Group
	mu      sync.Mutex // guards PeakMiB, which those that leave write
}

// phases goes through all numbers of workers.
func (s *scaling) phases(ctx context.Context) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	from := 0
	still := standstills{}
	for _, n := range s.bench.scale.workers {
		say("scale: %d to %d workers", from, n)
		if err := s.add(ctx, n); err != nil {
			return err
		}
		s.remove(ctx, n)
		if from == 0 {
			if err := s.look(ctx, tick.C, still, func() bool { return len(still) == s.Lanes && still.allMoved() }); err != nil {
				return err
			}
			still = standstills{} // the start is not what is measured
		}
		end := time.Now().Add(s.bench.scale.each)
		if err := s.look(ctx, tick.C, still, func() bool { return time.Now().After(end) }); err != nil {
			return err
		}
		longest := still.cut(time.Now())
		s.Phases = append(s.Phases, scalePhase{
			From: from, To: n, Seconds: s.bench.scale.each.Seconds(),
			LongestSeconds: longest[len(longest)-1].Seconds(), MedianSeconds: longest[len(longest)/2].Seconds(),
		})
		say("scale: %d to %d workers: a lane stood still for %s at most", from, n, longest[len(longest)-1].Round(time.Millisecond))
		from = n
	}
	return nil
}

// add starts workers until there are n.
func (s *scaling) add(ctx context.Context, n int) error {
	for len(s.workers) < n {
		s.started++
		w, err := s.bench.startWorker(ctx, s.db, s.topic, s.topic, fmt.Sprintf("%s-%d", s.topic, s.started))
		if err != nil {
			return err
		}
		s.workers = append(s.workers, w)
	}
	return nil
}

// remove tells workers to stop until there are n, all at once and the youngest first, and doesn't wait for them.
func (s *scaling) remove(ctx context.Context, n int) {
	for len(s.workers) > n {
		w := s.workers[len(s.workers)-1]
		s.workers = s.workers[:len(s.workers)-1]
		s.leaving.Go(func() error {
			err := w.end(ctx, nil)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.PeakMiB = max(s.PeakMiB, float64(w.peak)/(1<<20))
			return err
		})
	}
}

// look reads the positions again and again, until it is enough.
func (s *scaling) look(ctx context.Context, tick <-chan time.Time, still standstills, enough func() bool) error {
	for !enough() {
		for _, w := range s.workers[1:] {
			select {
			case <-w.done:
				return w.end(ctx, errors.New("a worker ended by itself"))
			default:
			}
		}
		if err := s.workers[0].wait(ctx, tick); err != nil {
			return err
		}
		at, err := s.db.positions(ctx)
		if err != nil {
			return err
		}
		still.see(time.Now(), at)
	}
	return nil
}

// standstills are how long lanes did not move, by lane. Each has records waiting at any time.
type standstills map[int32]*standstill

type standstill struct {
	next    int64
	moved   time.Time
	longest time.Duration
}

func (s standstills) see(now time.Time, at map[int32]int64) {
	for lane, next := range at {
		switch l := s[lane]; {
		case l == nil:
			s[lane] = &standstill{next: next, moved: now}
		case next != l.next:
			l.longest = max(l.longest, now.Sub(l.moved))
			l.next, l.moved = next, now
		}
	}
}

func (s standstills) allMoved() bool {
	for _, l := range s {
		if l.longest == 0 {
			return false
		}
	}
	return true
}

// cut returns each lane's longest standstill since the last cut, the shortest first. One under way counts for as long as it is, now and then
// again whole.
func (s standstills) cut(now time.Time) []time.Duration {
	var all []time.Duration
	for _, l := range s {
		all = append(all, max(l.longest, now.Sub(l.moved)))
		l.longest = 0
	}
	slices.Sort(all)
	return all
}

func (f *scaleFigures) print(out *bytes.Buffer) {
	if f == nil {
		return
	}
	fmt.Fprintf(out, "\nscale: %d lanes, %d events/s, %d events, all indexes, each one row; flush interval %.1f s; peak %.0f MiB a worker\n", f.Lanes, f.Rate, f.Events, f.FlushSeconds, f.PeakMiB)
	fmt.Fprintf(out, "%-10s %8s %26s %26s\n", "workers", "watched", "longest standstill", "median of the lanes'")
	for _, p := range f.Phases {
		fmt.Fprintf(out, "%-10s %6.0f s %24.2f s %24.2f s\n", fmt.Sprintf("%d to %d", p.From, p.To), p.Seconds, p.LongestSeconds, p.MedianSeconds)
	}
}
