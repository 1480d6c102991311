package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// growthPlan is how large the table gets.
type growthPlan struct {
	events   int
	slice    int      // rows, of which the figures are taken each by itself
	variants []string // unlike the other scenarios', none is left out by default but none
}

// growthFigures are one run over a table that grows from nothing.
type growthFigures struct {
	Variant string     `json:"indexes"`
	Round   int        `json:"round"` // 0 for the medians
	Events  int        `json:"events"`
	Ceiling growthSide `json:"ceiling"`
	Worker  growthSide `json:"worker"`
	// Ratio is of the worker's rate to the ceiling's, Ratios of each slice that both have.
	Ratio  float64   `json:"ratio"`
	Ratios []float64 `json:"ratios"`
	// Builds are what deferred builds took after the worker's rows were in, with either profile.
	Builds []buildFigures `json:"builds,omitempty"`
}

// growthSide is how the table grew by one means.
type growthSide struct {
	Seconds float64        `json:"seconds"` // of all slices
	Rate    float64        `json:"rows_per_second"`
	Slices  []growthFigure `json:"slices"`
}

// growthFigure is a slice's.
type growthFigure struct {
	Slice   int     `json:"slice"` // its number, from 1
	Rows    int64   `json:"rows"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"rows_per_second"`
	Micros  float64 `json:"microseconds_per_row"`
	// WALBytes is what the server wrote to the log meanwhile, TableBytes and IndexBytes what is there at the end.
	WALBytes   int64 `json:"wal_bytes"`
	TableBytes int64 `json:"table_bytes"`
	IndexBytes int64 `json:"index_bytes"`
}

// mark is how much is there at a moment.
type mark struct {
	point
	wal, table, index int64 // in bytes
}

// growthPeriod is how far the events of growth are apart: as if there were ten thousand a second.
const growthPeriod = 100 * time.Microsecond

// growthSource makes the events of one table, the last of which happens just now or has.
func (b *bench) growthSource(begin time.Time) *source {
	return newSource(b.lanes, func(i int) time.Time { return begin.Add(time.Duration(i) * growthPeriod) })
}

// measureGrowth lets tables grow, in turn by the ceiling and by a worker, each in a database of its own.
func (b *bench) measureGrowth(ctx context.Context) (all []growthFigures, err error) {
	const topic = "bench-growth"
	begin := time.Now().Add(-time.Duration(b.growth.events) * growthPeriod)
	say("growth: making %d events", b.growth.events)
	if err := b.fillFrom(ctx, topic, b.growthSource(begin), b.growth.events); err != nil {
		return nil, err
	}
	for round := range b.rounds {
		for _, variant := range b.growth.variants {
			f := growthFigures{Variant: variant, Round: round + 1, Events: b.growth.events}
			if err := b.growCeiling(ctx, b.growthSource(begin), &f); err != nil {
				return nil, fmt.Errorf("indexes: %s: ceiling: %w", variant, err)
			}
			if err := b.growWorker(ctx, topic, &f); err != nil {
				return nil, fmt.Errorf("indexes: %s: worker: %w", variant, err)
			}
			f.compare()
			say("growth: %s", f)
			all = append(all, f)
		}
	}
	return all, nil
}

// growCeiling stores the rows slice by slice. While the next one is encoded, nothing is timed and the server has a rest, which is to the ceiling's good.
func (b *bench) growCeiling(ctx context.Context, s *source, f *growthFigures) error {
	return b.onDatabase(ctx, f.Variant, func(db *database) (err error) {
		conns, closing, err := connectAll(ctx, db.url, b.connections)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closing(context.WithoutCancel(ctx))) }()
		if err := db.checkpoint(ctx); err != nil {
			return err
		}
		for s.made < f.Events {
			stored := int64(s.made)
			chunks, err := s.encode(min(b.growth.slice, f.Events-s.made), func(_, _ []byte) {})
			if err != nil {
				return err
			}
			from, err := db.mark(ctx, point{time.Time{}, stored})
			if err != nil {
				return err
			}
			progress, err := copyChunks(ctx, conns, chunks)
			if err != nil {
				return err
			}
			last := progress[len(progress)-1]
			to, err := db.mark(ctx, point{last.at, stored + last.stored})
			if err != nil {
				return err
			}
			from.at = progress[0].at
			f.Ceiling.add(from, to, b.growth.slice)
			say("growth: %s: ceiling: %s", f.Variant, f.Ceiling.Slices[len(f.Ceiling.Slices)-1])
		}
		return db.verify(ctx, f.Events)
	})
}

// growWorker lets a worker store the topic, and then builds what is deferred.
func (b *bench) growWorker(ctx context.Context, topic string, f *growthFigures) error {
	return b.onDatabase(ctx, f.Variant, func(db *database) error {
		if err := db.checkpoint(ctx); err != nil {
			return err
		}
		name := fmt.Sprintf("%s-%s-%d", topic, f.Variant, f.Round)
		w, err := b.startWorker(ctx, db, topic, name, name)
		if err != nil {
			return err
		}
		var from mark // of the first commit: its start and the group's are not what is measured
		err = w.follow(ctx, db.stored, int64(f.Events), func(p point) error {
			if p.stored == 0 || from.stored > 0 && p.stored/int64(b.growth.slice) == from.stored/int64(b.growth.slice) && p.stored < int64(f.Events) {
				return nil
			}
			to, err := db.mark(ctx, p)
			if err != nil {
				return err
			}
			if from.stored > 0 {
				f.Worker.add(from, to, b.growth.slice)
				say("growth: %s: worker: %s", f.Variant, f.Worker.Slices[len(f.Worker.Slices)-1])
			}
			from = to
			return nil
		})
		if err := w.end(ctx, err); err != nil {
			return err
		}
		if f.Variant == hotIndexes {
			if err := f.buildLater(ctx, db); err != nil {
				return err
			}
		}
		return db.verify(ctx, f.Events)
	})
}

// mark adds the server's sizes to a point.
func (db *database) mark(ctx context.Context, p point) (mark, error) {
	m := mark{point: p}
	err := db.conn.QueryRow(ctx, `
		SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, sum(pg_table_size(relid))::bigint, sum(pg_indexes_size(relid))::bigint
		FROM pg_partition_tree('audit_log') WHERE isleaf`).Scan(&m.wal, &m.table, &m.index)
	if err != nil {
		return m, fmt.Errorf("ask for sizes: %w", err)
	}
	return m, nil
}

// add appends a slice.
func (s *growthSide) add(from, to mark, slice int) {
	rows, seconds := to.stored-from.stored, to.at.Sub(from.at).Seconds()
	s.Slices = append(s.Slices, growthFigure{
		// The worker's end a little after their marks.
		Slice: int((from.stored+to.stored)/2)/slice + 1, Rows: rows, Seconds: seconds,
		Rate: float64(rows) / seconds, Micros: seconds * 1e6 / float64(rows),
		WALBytes: to.wal - from.wal, TableBytes: to.table, IndexBytes: to.index,
	})
	s.sum()
}

// sum works out the totals.
func (s *growthSide) sum() {
	s.Seconds = 0
	rows := int64(0)
	for _, f := range s.Slices {
		s.Seconds += f.Seconds
		rows += f.Rows
	}
	s.Rate = float64(rows) / s.Seconds
}

// slice returns one by its number, nil where the run was too short to tell.
func (s *growthSide) slice(number int) *growthFigure {
	i := slices.IndexFunc(s.Slices, func(f growthFigure) bool { return f.Slice == number })
	if i < 0 {
		return nil
	}
	return &s.Slices[i]
}

// compare fills in what follows from the rest.
func (f *growthFigures) compare() {
	f.Ratio = f.Worker.Rate / f.Ceiling.Rate
	for _, c := range f.Ceiling.Slices {
		if w := f.Worker.slice(c.Slice); w != nil {
			f.Ratios = append(f.Ratios, w.Rate/c.Rate)
		}
	}
	for i := range f.Builds {
		f.Builds[i].Rate = float64(f.Events) / (f.Worker.Seconds + f.Builds[i].Seconds)
	}
}

// String is a slice's figures in a line.
func (f growthFigure) String() string {
	return fmt.Sprintf("slice %d: %.0f rows/s, %.1f µs a row, %.0f MB of WAL, %.0f MB of indexes", f.Slice, f.Rate, f.Micros, float64(f.WALBytes)/1e6, float64(f.IndexBytes)/1e6)
}

// String is a run's figures in a line.
func (f growthFigures) String() string {
	return fmt.Sprintf("%s: round %d: ceiling %.0f, worker %.0f rows/s; ratio %.2f", f.Variant, f.Round, f.Ceiling.Rate, f.Worker.Rate, f.Ratio)
}

// growthMedians takes the median of the totals, and of each slice, over the rounds of each variant, in the order of the first round.
func growthMedians(runs []growthFigures) (all []growthFigures) {
	done := map[string]bool{}
	for _, run := range runs {
		if done[run.Variant] {
			continue
		}
		done[run.Variant] = true
		rounds := slices.DeleteFunc(slices.Clone(runs), func(f growthFigures) bool { return f.Variant != run.Variant })
		m := growthFigures{Variant: run.Variant, Events: run.Events, Ratio: median(rounds, func(f growthFigures) float64 { return f.Ratio })}
		m.Ceiling = medianSide(rounds, func(f growthFigures) growthSide { return f.Ceiling })
		m.Worker = medianSide(rounds, func(f growthFigures) growthSide { return f.Worker })
		for i := range run.Ratios {
			if all := having(rounds, func(f growthFigures) bool { return i < len(f.Ratios) }); len(all) == len(rounds) {
				m.Ratios = append(m.Ratios, median(rounds, func(f growthFigures) float64 { return f.Ratios[i] }))
			}
		}
		m.Builds = medianBuilds(rounds)
		all = append(all, m)
	}
	return all
}

// having are the rounds that have something.
func having(rounds []growthFigures, has func(growthFigures) bool) []growthFigures {
	return slices.DeleteFunc(slices.Clone(rounds), func(f growthFigures) bool { return !has(f) })
}

// medianSide takes the medians of the slices that all rounds have.
func medianSide(rounds []growthFigures, of func(growthFigures) growthSide) growthSide {
	m := growthSide{
		Seconds: median(rounds, func(f growthFigures) float64 { return of(f).Seconds }),
		Rate:    median(rounds, func(f growthFigures) float64 { return of(f).Rate }),
	}
	for _, first := range of(rounds[0]).Slices {
		var same []growthFigure
		for _, f := range rounds {
			side := of(f)
			if s := side.slice(first.Slice); s != nil {
				same = append(same, *s)
			}
		}
		if len(same) < len(rounds) {
			continue
		}
		whole := func(of func(growthFigure) int64) int64 {
			return int64(median(same, func(f growthFigure) float64 { return float64(of(f)) }))
		}
		m.Slices = append(m.Slices, growthFigure{
			Slice: first.Slice, Rows: whole(func(f growthFigure) int64 { return f.Rows }),
			Seconds:    median(same, func(f growthFigure) float64 { return f.Seconds }),
			Rate:       median(same, func(f growthFigure) float64 { return f.Rate }),
			Micros:     median(same, func(f growthFigure) float64 { return f.Micros }),
			WALBytes:   whole(func(f growthFigure) int64 { return f.WALBytes }),
			TableBytes: whole(func(f growthFigure) int64 { return f.TableBytes }),
			IndexBytes: whole(func(f growthFigure) int64 { return f.IndexBytes }),
		})
	}
	return m
}

func printGrowth(out *bytes.Buffer, runs, medians []growthFigures) {
	if len(runs) == 0 {
		return
	}
	fmt.Fprintf(out, "\ngrowth: %d rows, each slice by itself\n%-8s %-7s %6s  %-18s  %-18s  %6s  %10s  %10s\n", runs[0].Events, "", "", "", "rows/s", "µs a row", "", "worker's", "worker's")
	fmt.Fprintf(out, "%-8s %-7s %6s  %8s %9s  %8s %9s  %6s  %10s  %10s\n", "indexes", "round", "slice", "ceiling", "worker", "ceiling", "worker", "ratio", "WAL, MB", "indexes MB")
	for _, f := range slices.Concat(runs, medians) {
		round := "median"
		if f.Round > 0 {
			round = strconv.Itoa(f.Round)
		}
		for _, c := range f.Ceiling.Slices {
			if w := f.Worker.slice(c.Slice); w != nil {
				fmt.Fprintf(out, "%-8s %-7s %6d  %8.0f %9.0f  %8.1f %9.1f  %6.2f  %10.0f  %10.0f\n", f.Variant, round, c.Slice,
					c.Rate, w.Rate, c.Micros, w.Micros, w.Rate/c.Rate, float64(w.WALBytes)/1e6, float64(w.IndexBytes)/1e6)
			}
		}
		fmt.Fprintf(out, "%-8s %-7s %6s  %8.0f %9.0f  %8.1f %9.1f  %6.2f\n", f.Variant, round, "all", f.Ceiling.Rate, f.Worker.Rate, 1e6/f.Ceiling.Rate, 1e6/f.Worker.Rate, f.Ratio)
	}
	printBuilds(out, slices.Concat(runs, medians))
}
