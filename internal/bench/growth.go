package main

import (
	"bytes"
	"context"
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

// growthFigures are those of one table that grows from nothing.
type growthFigures struct {
	Variant string `json:"indexes"`
	Round   int    `json:"round"` // 0 for the medians
	Events  int    `json:"events"`
	Slice   int    `json:"rows_per_slice"`
	// Each stores its part of each slice, after or before the others.
	Ceiling  growthSide  `json:"ceiling"`
	Worker   growthSide  `json:"worker"`
	Debezium *growthSide `json:"debezium,omitempty"` // with all indexes
	// Ratio is of the worker's rate to the ceiling's, Ratios of each slice.
	Ratio  float64   `json:"ratio"`
	Ratios []float64 `json:"ratios"`
	// DebeziumRatios are Debezium's to the ceiling's, of each slice.
	DebeziumRatios []float64 `json:"debezium_ratios,omitempty"`
	// ToAll is the ratio of the worker's rate to its rate with all indexes, and ToDebezium to Debezium's with all indexes, in the same round; 0 where that isn't measured.
	ToAll      float64 `json:"ratio_to_all_indexes"`
	ToDebezium float64 `json:"ratio_to_debezium"`
	// Builds are what deferred builds took once all rows were in, with either profile.
	Builds []buildFigures `json:"builds,omitempty"`
}

// growthSide is what one of them stored.
type growthSide struct {
	Seconds float64        `json:"seconds"` // of all slices
	Rate    float64        `json:"rows_per_second"`
	Slices  []growthFigure `json:"slices"`
}

// growthFigure is its part of a slice.
type growthFigure struct {
	Slice   int     `json:"slice"` // its number, from 1
	Rows    int64   `json:"rows"`
	Seconds float64 `json:"seconds"` // that they take at this rate
	Rate    float64 `json:"rows_per_second"`
	Micros  float64 `json:"microseconds_per_row"`
	// WALBytes is what the server wrote to the log meanwhile, TableBytes and IndexBytes what is there at the end.
	WALBytes   int64 `json:"wal_bytes"`
	TableBytes int64 `json:"table_bytes"`
	IndexBytes int64 `json:"index_bytes"`
}

// mark is how much is there at a moment, in bytes.
type mark struct{ wal, table, index int64 }

// growthPeriod is how far the events of growth are apart: as if there were ten thousand a second.
const growthPeriod = 100 * time.Microsecond

// measureGrowth lets a table grow with the indexes of each variant.
func (b *bench) measureGrowth(ctx context.Context) (all []growthFigures, err error) {
	for round := range b.rounds {
		for _, variant := range b.growth.variants {
			f := growthFigures{Variant: variant, Round: round + 1, Slice: b.growth.slice}
			if err := b.onDatabase(ctx, variant, func(db *database) error { return b.grow(ctx, db, &f) }); err != nil {
				return nil, fmt.Errorf("indexes: %s: %w", variant, err)
			}
			f.compare()
			say("growth: %s", f)
			all = append(all, f)
		}
	}
	return all, nil
}

// grow lets a table grow slice by slice. All take turns in each of them, another one first each time, so that none finds the table larger or the machine busier than the others.
func (b *bench) grow(ctx context.Context, db *database, f *growthFigures) (err error) {
	turns, end, err := b.growthTurns(ctx, db, f)
	defer func() {
		if end != nil {
			err = end(ctx, err)
		}
	}()
	if err != nil {
		return err
	}
	if err := db.checkpoint(ctx); err != nil {
		return err
	}
	part := b.growth.slice / len(turns) / b.lanes * b.lanes
	for number := range b.growth.events / b.growth.slice {
		for i := range turns {
			t := turns[(number+i)%len(turns)]
			if err := t.prepare(ctx, part); err != nil {
				return err
			}
			from, err := db.mark(ctx)
			if err != nil {
				return err
			}
			progress, err := t.store(ctx, part)
			if err != nil {
				return fmt.Errorf("%s: slice %d: %w", t.name, number+1, err)
			}
			to, err := db.mark(ctx)
			if err != nil {
				return err
			}
			t.side.add(number+1, progress, from, to)
			say("growth: %s: %s: %s", f.Variant, t.name, t.side.Slices[number])
			f.Events += part
		}
	}
	err, end = end(ctx, nil), nil
	if err == nil && f.Variant == hotIndexes {
		err = f.buildLater(ctx, db)
	}
	if err != nil {
		return err
	}
	return db.verifyGrowth(ctx, f)
}

// mark looks at the server's sizes.
func (db *database) mark(ctx context.Context) (m mark, err error) {
	err = db.conn.QueryRow(ctx, `
		SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, sum(pg_table_size(relid))::bigint, sum(pg_indexes_size(relid))::bigint
		FROM pg_partition_tree('audit_log') WHERE isleaf`).Scan(&m.wal, &m.table, &m.index)
	if err != nil {
		return m, fmt.Errorf("ask for sizes: %w", err)
	}
	return m, nil
}

// verifyGrowth requires that every event of each of them is exactly one row. Debezium's have no lane: they are counted only.
func (db *database) verifyGrowth(ctx context.Context, f *growthFigures) error {
	var rows, distinct, without, quarantined, beside int
	err := db.conn.QueryRow(ctx, `
		SELECT count(*), count(DISTINCT lane_id::bigint << 40 | lane_offset), count(*) FILTER (WHERE lane_id IS NULL), (SELECT count(*) FROM audit_quarantine)
		FROM audit_log`).Scan(&rows, &distinct, &without, &quarantined)
	if f.Debezium != nil {
		beside = f.Events / 3
	}
	switch {
	case err != nil:
		return fmt.Errorf("count the rows: %w", err)
	case rows != f.Events || distinct != f.Events-beside || without != beside || quarantined != 0:
		return fmt.Errorf("of %d events, %d of them Debezium's, %d rows were stored: %d for %d different offsets, %d without one; %d went to quarantine",
			f.Events, beside, rows, rows-without, distinct, without, quarantined)
	}
	return nil
}

// add appends a slice.
func (s *growthSide) add(number int, progress []point, from, to mark) {
	rows, rate := progress[len(progress)-1].stored, paceOf(progress)
	s.Slices = append(s.Slices, growthFigure{
		Slice: number, Rows: rows, Seconds: float64(rows) / rate, Rate: rate, Micros: 1e6 / rate,
		WALBytes: to.wal - from.wal, TableBytes: to.table, IndexBytes: to.index,
	})
	s.sum()
}

// paceOf is the rows a second from the first commit to the last before nineteen of twenty rows are in: a sink's last ones wait until their batch is old enough, since none come after them. Where there
// are too few commits for that, it is those from the start to the end.
func paceOf(progress []point) float64 {
	first := max(0, slices.IndexFunc(progress, func(p point) bool { return p.stored > 0 }))
	last := len(progress) - 1
	for all := progress[last].stored; last > first && progress[last].stored > all-all/20; {
		last--
	}
	if last == first {
		first, last = 0, len(progress)-1
	}
	return float64(progress[last].stored-progress[first].stored) / progress[last].at.Sub(progress[first].at).Seconds()
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

// compare fills in what follows from the rest.
func (f *growthFigures) compare() {
	f.Ratio = f.Worker.Rate / f.Ceiling.Rate
	f.Ratios, f.DebeziumRatios = nil, nil
	for i, c := range f.Ceiling.Slices {
		f.Ratios = append(f.Ratios, f.Worker.Slices[i].Rate/c.Rate)
		if f.Debezium != nil {
			f.DebeziumRatios = append(f.DebeziumRatios, f.Debezium.Slices[i].Rate/c.Rate)
		}
	}
	for i := range f.Builds {
		f.Builds[i].Rate = float64(f.Events) / (float64(f.Events)/f.Worker.Rate + f.Builds[i].Seconds)
	}
}

// compareGrowth holds the worker against all indexes, and against Debezium, in the same round.
func compareGrowth(runs []growthFigures) {
	for i := range runs {
		for _, other := range runs {
			if other.Round != runs[i].Round || other.Variant != allIndexes {
				continue
			}
			runs[i].ToAll = runs[i].Worker.Rate / other.Worker.Rate
			if other.Debezium != nil {
				runs[i].ToDebezium = runs[i].Worker.Rate / other.Debezium.Rate
			}
		}
	}
	compareBuilds(runs)
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
		of := func(figure func(growthFigures) float64) float64 { return median(rounds, figure) }
		m := growthFigures{
			Variant: run.Variant, Events: run.Events, Slice: run.Slice, Ratio: of(func(f growthFigures) float64 { return f.Ratio }),
			ToAll: of(func(f growthFigures) float64 { return f.ToAll }), ToDebezium: of(func(f growthFigures) float64 { return f.ToDebezium }),
			Ceiling: medianSide(rounds, func(f growthFigures) growthSide { return f.Ceiling }),
			Worker:  medianSide(rounds, func(f growthFigures) growthSide { return f.Worker }),
			Builds:  medianBuilds(rounds),
		}
		if run.Debezium != nil {
			d := medianSide(rounds, func(f growthFigures) growthSide { return *f.Debezium })
			m.Debezium = &d
		}
		for i := range run.Ratios {
			m.Ratios = append(m.Ratios, of(func(f growthFigures) float64 { return f.Ratios[i] }))
			if run.Debezium != nil {
				m.DebeziumRatios = append(m.DebeziumRatios, of(func(f growthFigures) float64 { return f.DebeziumRatios[i] }))
			}
		}
		all = append(all, m)
	}
	return all
}

// medianSide takes the medians of each slice.
func medianSide(rounds []growthFigures, side func(growthFigures) growthSide) growthSide {
	m := growthSide{
		Seconds: median(rounds, func(f growthFigures) float64 { return side(f).Seconds }),
		Rate:    median(rounds, func(f growthFigures) float64 { return side(f).Rate }),
	}
	for i, first := range side(rounds[0]).Slices {
		of := func(figure func(growthFigure) float64) float64 {
			return median(rounds, func(f growthFigures) float64 { return figure(side(f).Slices[i]) })
		}
		m.Slices = append(m.Slices, growthFigure{
			Slice: first.Slice, Rows: first.Rows,
			Seconds:    of(func(f growthFigure) float64 { return f.Seconds }),
			Rate:       of(func(f growthFigure) float64 { return f.Rate }),
			Micros:     of(func(f growthFigure) float64 { return f.Micros }),
			WALBytes:   int64(of(func(f growthFigure) float64 { return float64(f.WALBytes) })),
			TableBytes: int64(of(func(f growthFigure) float64 { return float64(f.TableBytes) })),
			IndexBytes: int64(of(func(f growthFigure) float64 { return float64(f.IndexBytes) })),
		})
	}
	return m
}

// orDash is a figure, or a dash where it isn't known.
func orDash(format string, v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

func printGrowth(out *bytes.Buffer, runs, medians []growthFigures) {
	if len(runs) == 0 {
		return
	}
	fmt.Fprintf(out, "\ngrowth: %d rows, each slice by itself\n%-8s %-7s %6s  %-28s  %-28s  %6s  %10s  %10s\n", runs[0].Events, "", "", "", "rows/s", "µs a row", "", "worker's", "")
	fmt.Fprintf(out, "%-8s %-7s %6s  %8s %9s %9s  %8s %9s %9s  %6s  %10s  %10s\n", "indexes", "round", "slice", "ceiling", "worker", "Debezium", "ceiling", "worker", "Debezium", "ratio", "WAL, B/row", "indexes MB")
	line := func(f growthFigures, slice string, c, w, d, ratio float64, rest string) {
		round, beside := "median", 0.0
		if f.Round > 0 {
			round = strconv.Itoa(f.Round)
		}
		if d > 0 {
			beside = 1e6 / d
		}
		fmt.Fprintf(out, "%-8s %-7s %6s  %8.0f %9.0f %9s  %8.1f %9.1f %9s  %6.2f%s\n", f.Variant, round, slice, c, w, orDash("%.0f", d), 1e6/c, 1e6/w, orDash("%.1f", beside), ratio, rest)
	}
	for _, f := range slices.Concat(runs, medians) {
		for i, c := range f.Ceiling.Slices {
			w, d := f.Worker.Slices[i], 0.0
			if f.Debezium != nil {
				d = f.Debezium.Slices[i].Rate
			}
			line(f, strconv.Itoa(c.Slice), c.Rate, w.Rate, d, f.Ratios[i], fmt.Sprintf("  %10.0f  %10.0f", float64(w.WALBytes)/float64(w.Rows), float64(w.IndexBytes)/1e6))
		}
		d := 0.0
		if f.Debezium != nil {
			d = f.Debezium.Rate
		}
		line(f, "all", f.Ceiling.Rate, f.Worker.Rate, d, f.Ratio, "")
	}
	fmt.Fprintf(out, "\ngrowth: the worker's rate over all rows\n%-8s %-7s %9s %14s %22s\n", "indexes", "round", "rows/s", "to all indexes", "to Debezium with all")
	for _, f := range slices.Concat(runs, medians) {
		round := "median"
		if f.Round > 0 {
			round = strconv.Itoa(f.Round)
		}
		fmt.Fprintf(out, "%-8s %-7s %9.0f %14s %22s\n", f.Variant, round, f.Worker.Rate, orDash("%.2f", f.ToAll), orDash("%.2f", f.ToDebezium))
	}
	printBuilds(out, slices.Concat(runs, medians))
}
