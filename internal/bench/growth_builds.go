package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/indexes"
)

// buildFigures are what it takes to build the indexes of a profile on a partition that is full.
type buildFigures struct {
	Profile    indexes.Profile `json:"profile"`
	Indexes    int             `json:"indexes"`
	Seconds    float64         `json:"seconds"`
	WALBytes   int64           `json:"wal_bytes"`
	IndexBytes int64           `json:"index_bytes"` // of all indexes at the end, those that were there included
	// Rate is in rows a second, counting the ingest and the builds.
	Rate float64 `json:"rows_per_second"`
	// ToImmediate is the ratio of Rate to the worker's with the same profile built at once, in the same round; 0 where that isn't measured.
	ToImmediate float64 `json:"ratio_to_immediate"`
}

// buildLater builds the indexes of either profile, as the leader does once a partition's interval has ended but without its pauses, and drops those of the first before the second: what
// came in is the same with both.
func (f *growthFigures) buildLater(ctx context.Context, db *database) error {
	for _, profile := range []indexes.Profile{indexes.Full, indexes.Lean} {
		built, err := db.build(ctx, indexes.Choice{Profile: profile, Build: indexes.Deferred})
		if err != nil {
			return err
		}
		say("growth: %s: builds: %s: %d indexes in %.1f s", f.Variant, profile, built.Indexes, built.Seconds)
		f.Builds = append(f.Builds, built)
	}
	return nil
}

// build builds what a choice defers, on every partition with rows, one index after the other, measures that, and drops it again.
func (db *database) build(ctx context.Context, choice indexes.Choice) (buildFigures, error) {
	f := buildFigures{Profile: choice.Profile}
	rows, err := db.conn.Query(ctx, `SELECT relid::regclass::text FROM pg_partition_tree('audit_log') WHERE isleaf AND pg_relation_size(relid) > 0 ORDER BY 1`)
	if err != nil {
		return f, fmt.Errorf("list the partitions with rows: %w", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return f, fmt.Errorf("list the partitions with rows: %w", err)
	}
	if _, err := db.conn.Exec(ctx, indexes.SessionSettings); err != nil { // as the leader
		return f, fmt.Errorf("prepare the session: %w", err)
	}
	begun := time.Now()
	from, err := db.mark(ctx)
	if err != nil {
		return f, err
	}
	for _, table := range tables {
		for _, i := range choice.Later() {
			if _, err := indexes.Create(ctx, db.conn, table, i); err != nil {
				return f, err
			}
			f.Indexes++
		}
	}
	f.Seconds = time.Since(begun).Seconds()
	to, err := db.mark(ctx)
	if err != nil {
		return f, err
	}
	f.WALBytes, f.IndexBytes = to.wal-from.wal, to.index
	for _, table := range tables {
		for _, i := range choice.Later() {
			if _, err := db.conn.Exec(ctx, `DROP INDEX `+i.Name(table)); err != nil {
				return f, fmt.Errorf("drop index %s: %w", i.Name(table), err)
			}
		}
	}
	return f, nil
}

// immediate is the variant whose profile is built at once.
var immediate = map[indexes.Profile]string{indexes.Full: allIndexes, indexes.Lean: leanIndexes}

// compareBuilds holds deferred builds against the same round's immediate ones.
func compareBuilds(runs []growthFigures) {
	for i := range runs {
		for j := range runs[i].Builds {
			b := &runs[i].Builds[j]
			for _, other := range runs {
				if other.Round == runs[i].Round && other.Variant == immediate[b.Profile] && other.Worker.Rate > 0 {
					b.ToImmediate = b.Rate / other.Worker.Rate
				}
			}
		}
	}
}

// medianBuilds takes the medians of every figure by itself.
func medianBuilds(rounds []growthFigures) (all []buildFigures) {
	for i, first := range rounds[0].Builds {
		m := func(of func(buildFigures) float64) float64 {
			return median(rounds, func(f growthFigures) float64 { return of(f.Builds[i]) })
		}
		all = append(all, buildFigures{
			Profile: first.Profile, Indexes: first.Indexes,
			Seconds:     m(func(b buildFigures) float64 { return b.Seconds }),
			WALBytes:    int64(m(func(b buildFigures) float64 { return float64(b.WALBytes) })),
			IndexBytes:  int64(m(func(b buildFigures) float64 { return float64(b.IndexBytes) })),
			Rate:        m(func(b buildFigures) float64 { return b.Rate }),
			ToImmediate: m(func(b buildFigures) float64 { return b.ToImmediate }),
		})
	}
	return all
}

func printBuilds(out *bytes.Buffer, all []growthFigures) {
	headed := false
	for _, f := range all {
		for _, b := range f.Builds {
			if !headed {
				fmt.Fprintf(out, "\ndeferred builds, once all rows were in\n%-8s %-7s %8s %9s %9s %9s %9s %20s %22s\n",
					"profile", "round", "indexes", "ingest s", "builds s", "WAL, MB", "index MB", "rows/s, with builds", "ratio to built at once")
				headed = true
			}
			round, ratio := "median", "-"
			if f.Round > 0 {
				round = strconv.Itoa(f.Round)
			}
			if b.ToImmediate > 0 {
				ratio = fmt.Sprintf("%.2f", b.ToImmediate)
			}
			fmt.Fprintf(out, "%-8s %-7s %8d %9.1f %9.1f %9.0f %9.0f %20.0f %22s\n", b.Profile, round, b.Indexes, float64(f.Events)/f.Worker.Rate, b.Seconds,
				float64(b.WALBytes)/1e6, float64(b.IndexBytes)/1e6, b.Rate, ratio)
		}
	}
}
