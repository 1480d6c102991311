package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// besideFigures are another sink's in a round, and how ours compares.
type besideFigures struct {
	Rates rates `json:"rates"`
	Ratio rates `json:"ratio"` // of our worker to it
	// ToCeiling is the ratio of its rates to the ceiling's.
	ToCeiling rates `json:"ratio_to_ceiling"`
	// CPUSeconds are its own, user and system, from its start to its end, BusySeconds those from its first rows to its last: what a JVM's start and
	// first second cost is no part of them.
	CPUSeconds     float64 `json:"cpu_seconds"`
	CPUPerMillion  float64 `json:"cpu_seconds_per_million"`
	BusySeconds    float64 `json:"busy_cpu_seconds"`
	BusyPerMillion float64 `json:"busy_cpu_seconds_per_million"`
	PeakMB         float64 `json:"peak_mb"` // as of figures
}

// compared fills in what follows from the rest.
func (d *besideFigures) compared(f *figures) {
	d.Ratio = rates{f.Worker.Whole / d.Rates.Whole, f.Worker.Steady / d.Rates.Steady}
	d.CPUPerMillion = d.CPUSeconds / float64(f.Events) * 1e6
	d.BusyPerMillion = d.BusySeconds / float64(f.Events) * 1e6
}

// debezium lets Debezium store the topic that our worker has stored, in the same kind of database, and requires the same rows of it.
func (b *bench) debezium(ctx context.Context, l *load, f *figures) error {
	return b.onDatabase(ctx, f.Variant, func(db *database) error {
		if err := db.checkpoint(ctx); err != nil {
			return err
		}
		group := fmt.Sprintf("%s-debezium-%d", l.topic, f.Round)
		c, err := b.startDebezium(ctx, db, l.topic, group)
		if err != nil {
			return err
		}
		events := int64(l.events)
		if err = c.awaitReady(ctx); err == nil {
			err = c.follow(ctx, func(ctx context.Context) (int64, error) { return db.inserted(ctx, events) }, events, func(point) error { return nil })
		}
		if err := c.end(ctx, err); err != nil {
			return err
		}
		if err := db.verifyDebezium(ctx, l.events, f.digest); err != nil {
			return err
		}
		progress, err := db.commits(ctx)
		if err != nil {
			return err
		}
		f.Debezium = &besideFigures{
			Rates: ratesOf(progress, 1, l.events), CPUSeconds: c.cpuSeconds(), BusySeconds: c.busy, PeakMB: float64(c.peak) / 1e6,
		}
		f.Debezium.compared(f)
		say("indexes: %s: round %d: Debezium %.0f rows/s, %.2f CPU s, %.0f MB; ours is %.2f times as fast", f.Variant, f.Round,
			f.Debezium.Rates.Steady, f.Debezium.CPUSeconds, f.Debezium.PeakMB, f.Debezium.Ratio.Steady)
		return nil
	})
}

// commits is how the rows got stored, as the server knows it from the times of their transactions (track_commit_timestamp), whoever stored them. It notes
// that time when it writes the commit to the WAL, right before it waits for the disk.
func (db *database) commits(ctx context.Context) ([]point, error) {
	rows, err := db.conn.Query(ctx, `SELECT pg_xact_commit_timestamp(xmin), count(*) FROM audit_log GROUP BY xmin ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("read the times of commits: %w", err)
	}
	var progress []point
	var stored int64
	var at time.Time
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&at, &n}, func() error {
		stored += n
		progress = append(progress, point{at, stored})
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read the times of commits: %w", err)
	}
	if len(progress) == 0 {
		return nil, errors.New("read the times of commits: no row is stored")
	}
	return progress, nil
}

// digest tells whether two tables hold the same, in whichever order.
type digest struct {
	Rows int
	Sum  string // of the rows' hashes
}

// digest is that of the columns that Debezium stores as we do, and of the details, which hold a text of JSON with us and what it says with Debezium. The columns that we compute, add to or give a
// default are others.
func (db *database) digest(ctx context.Context) (d digest, err error) {
	err = db.conn.QueryRow(ctx, `
		SELECT count(*), coalesce(sum(hashtextextended(ROW(timestamp, ttl, principal_id, organization_id, action, target_resource_type, target_resource_id, status,
			outcome_description, hash, correlation_id, data_classification, archived_at, coalesce((details->>'context')::jsonb, details))::text, 0)), 0)::text
		FROM audit_log`).Scan(&d.Rows, &d.Sum)
	if err != nil {
		return d, fmt.Errorf("sum up the rows: %w", err)
	}
	return d, nil
}

// medianBeside takes the medians of a figure that each round has.
func medianBeside(rounds []figures) *besideFigures {
	of := func(figure func(*besideFigures) float64) float64 {
		return median(rounds, func(f figures) float64 { return figure(f.Debezium) })
	}
	return &besideFigures{
		Rates:          medianRates(rounds, func(f figures) rates { return f.Debezium.Rates }),
		Ratio:          medianRates(rounds, func(f figures) rates { return f.Debezium.Ratio }),
		ToCeiling:      medianRates(rounds, func(f figures) rates { return f.Debezium.ToCeiling }),
		CPUSeconds:     of(func(d *besideFigures) float64 { return d.CPUSeconds }),
		CPUPerMillion:  of(func(d *besideFigures) float64 { return d.CPUPerMillion }),
		BusySeconds:    of(func(d *besideFigures) float64 { return d.BusySeconds }),
		BusyPerMillion: of(func(d *besideFigures) float64 { return d.BusyPerMillion }),
		PeakMB:         of(func(d *besideFigures) float64 { return d.PeakMB }),
	}
}

// printCompared is the table of the rounds with Debezium beside us, and their medians.
func (r *report) printCompared(text *bytes.Buffer) {
	if len(r.Compared) == 0 {
		return
	}
	text.WriteString("\nauditsink beside Debezium's JDBC sink; each stored the same rows\n")
	fmt.Fprintf(text, "%-8s %-7s %9s  %-35s  %-26s  %-25s  %-16s\n", "", "", "", "steady, rows/s", "ratio", "CPU s a million", "peak MB")
	fmt.Fprintf(text, "%-8s %-7s %9s  %11s %11s %11s  %8s %8s %8s  %9s %8s %6s  %9s %8s\n", "indexes", "round", "events",
		"ceiling", "auditsink", "Debezium", "/ceiling", "D./ceil.", "/Debez.", "auditsink", "Debezium", "(busy)", "auditsink", "Debezium")
	for _, f := range slices.Concat(r.Compared, r.ComparedMedians) {
		round := "median"
		if f.Round > 0 {
			round = strconv.Itoa(f.Round)
		}
		d := f.Debezium
		fmt.Fprintf(text, "%-8s %-7s %9d  %11.0f %11.0f %11.0f  %8.2f %8.2f %8.2f  %9.2f %8.2f %6.2f  %9.0f %8.0f\n", f.Variant, round, f.Events,
			f.Ceiling.Steady, f.Worker.Steady, d.Rates.Steady, f.Ratio.Steady, d.ToCeiling.Steady, d.Ratio.Steady,
			f.CPUPerMillion, d.CPUPerMillion, d.BusyPerMillion, f.PeakMB, d.PeakMB)
	}
	text.WriteString("\nsteady: from a fifth of the events on; CPU: from start to end, busy: from the first rows to the last\n")
}
