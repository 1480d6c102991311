package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// point is how many rows were stored at a moment.
type point struct {
	at     time.Time
	stored int64
}

// rates are rows a second.
type rates struct {
	// Whole is over the whole run.
	Whole float64 `json:"whole"`
	// Steady leaves the first fifth out. Since indexes get slower as they grow, only rates of the same part of a run compare.
	Steady float64 `json:"steady"`
}

// ratesOf works the rates out. The whole run begins with the first point that has at least from rows.
func ratesOf(progress []point, from int64, events int) rates {
	return rates{Whole: rate(progress, from), Steady: rate(progress, int64(events)/5)}
}

// rate returns the rows a second from the first point that has at least from rows to the last point.
func rate(progress []point, from int64) float64 {
	last := progress[len(progress)-1]
	for _, p := range progress {
		if p.stored >= from && p.at.Before(last.at) {
			return float64(last.stored-p.stored) / last.at.Sub(p.at).Seconds()
		}
	}
	return 0 // all between two looks: too few events to tell
}

// figures are what a round gave.
type figures struct {
	Variant    string  `json:"indexes"`
	Round      int     `json:"round"` // 0 for the medians
	Events     int     `json:"events"`
	EventBytes float64 `json:"event_bytes"` // of an event's value, on average
	Ceilings   []rates `json:"ceilings"`    // before the sinks and after them, or the only one
	Ceiling    rates   `json:"ceiling"`     // their mean
	Worker     rates   `json:"worker"`
	Ratio      rates   `json:"ratio"` // of the worker to the ceiling
	// CPUSeconds are the worker's, user and system, from its start to its end.
	CPUSeconds    float64 `json:"cpu_seconds"`
	CPUPerMillion float64 `json:"cpu_seconds_per_million"`
	// BusySeconds are those from its first rows to its last.
	BusySeconds float64 `json:"busy_cpu_seconds"`
	// PeakMB is the worker's peak resident memory in 10⁶ bytes.
	PeakMB float64 `json:"peak_mb"`
	// Debezium is what it gave in the same round of a comparison.
	Debezium *besideFigures `json:"debezium,omitempty"`

	digest digest // of the worker's rows, in a comparison
}

// compare fills in what follows from the rest.
func (f *figures) compare() {
	n := float64(len(f.Ceilings))
	f.Ceiling = rates{}
	for _, c := range f.Ceilings {
		f.Ceiling = rates{f.Ceiling.Whole + c.Whole/n, f.Ceiling.Steady + c.Steady/n}
	}
	f.Ratio = rates{f.Worker.Whole / f.Ceiling.Whole, f.Worker.Steady / f.Ceiling.Steady}
	f.CPUPerMillion = f.CPUSeconds / float64(f.Events) * 1e6
	if d := f.Debezium; d != nil {
		d.ToCeiling = rates{d.Rates.Whole / f.Ceiling.Whole, d.Rates.Steady / f.Ceiling.Steady}
	}
}

// String is a round's figures in a line.
func (f figures) String() string {
	var ceilings []string
	for _, c := range f.Ceilings {
		ceilings = append(ceilings, fmt.Sprintf("%.0f", c.Steady))
	}
	return fmt.Sprintf("ceilings %s, worker %.0f rows/s; ratio %.2f; %.2f CPU s; %.0f MB",
		strings.Join(ceilings, ", "), f.Worker.Steady, f.Ratio.Steady, f.CPUSeconds, f.PeakMB)
}

// report is what the bench puts out.
type report struct {
	Facts           []fact           `json:"facts"`
	Runs            []figures        `json:"runs,omitempty"`
	Medians         []figures        `json:"medians,omitempty"`
	Compared        []figures        `json:"compared,omitempty"`
	ComparedMedians []figures        `json:"compared_medians,omitempty"`
	Outage          *outageFigures   `json:"outage,omitempty"`
	Backlogs        []backlogFigures `json:"backlogs,omitempty"`
	Scale           *scaleFigures    `json:"scale,omitempty"`
	Convert         *convertFigures  `json:"convert,omitempty"`
	Reads           *readsFigures    `json:"reads,omitempty"`
	Latencies       []latencyFigures `json:"latencies,omitempty"`
	Recovery        *recoveryFigures `json:"recovery,omitempty"`
	Growth          []growthFigures  `json:"growth,omitempty"`
	GrowthMedians   []growthFigures  `json:"growth_medians,omitempty"`
	Curves          []curveFigures   `json:"curves,omitempty"`
	CurveMedians    []curveFigures   `json:"curve_medians,omitempty"`
}

// fact is something about the machine or the settings that a figure means nothing without.
type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// postgresFacts are the server's settings.
func (b *bench) postgresFacts() string {
	var set []string
	for name, value := range b.postgresSettings() {
		set = append(set, name+"="+value)
	}
	slices.Sort(set)
	return strings.Join(append(set, "the rest default"), ", ")
}

// facts gathers them. One that can't be found out says so: no run should fail for it.
func (b *bench) facts(ctx context.Context) []fact {
	orWhy := func(value string, err error) string {
		if err != nil {
			return "unknown: " + err.Error()
		}
		return strings.TrimSpace(value)
	}
	settings := append([]string{fmt.Sprintf("AUDITSINK_FLUSH_ROWS=%d", b.flushRows), fmt.Sprintf("AUDITSINK_COPY_CONNS=%d (at full speed; otherwise the default)", b.copyConns)}, b.settings...)
	facts := []fact{
		{"date", time.Now().UTC().Format(time.RFC3339)},
		{"machine", fmt.Sprintf("%d cores shared by all, %s", runtime.NumCPU(), orWhy(processor()))},
		{"Go", runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH},
		{"PostgreSQL", orWhy(b.postgresVersion(ctx)) + "; " + b.postgresFacts()},
		{"Kafka", orWhy(b.kafka.Tool(ctx, "kafka.Kafka", "--version")) + "; one broker, records compressed as internal/kafka.Producer does"},
		{"topic", fmt.Sprintf("%d lanes where the table doesn't say, filled evenly", b.lanes)},
		{"worker", strings.Join(settings, " ")},
	}
	if b.commitTimes {
		facts = append(facts, fact{"Java", orWhy(javaVersion(ctx))}, fact{"Debezium", b.debeziumFacts()})
	}
	return facts
}

func javaVersion(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, "java", "--version").Output()
	version, _, _ := strings.Cut(string(output), "\n")
	return version, err
}

func processor() (string, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.Trim(name, "\t: \n"), nil
		}
	}
	return "", errors.New("/proc/cpuinfo names no model")
}

func (b *bench) postgresVersion(ctx context.Context) (version string, err error) {
	conn, err := pgx.Connect(ctx, b.postgres.URL("postgres"))
	if err != nil {
		return "", err
	}
	err = conn.QueryRow(ctx, `SHOW server_version`).Scan(&version)
	return version, errors.Join(err, conn.Close(ctx))
}

// publish prints the report and writes it to a file, if one is named.
func (r *report) publish(out io.Writer, path string) error {
	r.Medians, r.ComparedMedians = medians(r.Runs), medians(r.Compared)
	compareGrowth(r.Growth)
	r.GrowthMedians, r.CurveMedians = growthMedians(r.Growth), curveMedians(r.Curves)
	var text bytes.Buffer
	for _, f := range r.Facts {
		fmt.Fprintf(&text, "%-11s %s\n", f.Name, f.Value)
	}
	r.printRuns(&text)
	r.printCompared(&text)
	r.Outage.print(&text)
	printBacklogs(&text, r.Backlogs)
	r.Scale.print(&text)
	r.Convert.print(&text)
	r.Reads.print(&text)
	printLatencies(&text, r.Latencies)
	r.Recovery.print(&text)
	printGrowth(&text, r.Growth, r.GrowthMedians)
	printCurves(&text, r.Curves, r.CurveMedians)
	if _, err := out.Write(text.Bytes()); err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	if path == "" {
		return nil
	}
	return r.write(path)
}

// write writes the raw figures to a file.
func (r *report) write(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil { //nolint:gosec // for everybody to read
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// printRuns is the table of the rounds and their medians.
func (r *report) printRuns(text *bytes.Buffer) {
	if len(r.Runs) == 0 {
		return
	}
	fmt.Fprintf(text, "\n%-8s %-7s %9s %6s  %-24s  %-24s  %11s %8s\n", "", "", "", "", "steady, rows/s", "whole run, rows/s", "CPU s", "")
	fmt.Fprintf(text, "%-8s %-7s %9s %6s  %8s %8s %6s  %8s %8s %6s  %11s %8s\n", "indexes", "round", "events", "bytes",
		"ceiling", "worker", "ratio", "ceiling", "worker", "ratio", "per million", "peak MB")
	for _, f := range slices.Concat(r.Runs, r.Medians) {
		round := "median"
		if f.Round > 0 {
			round = strconv.Itoa(f.Round)
		}
		fmt.Fprintf(text, "%-8s %-7s %9d %6.0f  %8.0f %8.0f %6.2f  %8.0f %8.0f %6.2f  %11.2f %8.0f\n", f.Variant, round, f.Events, f.EventBytes,
			f.Ceiling.Steady, f.Worker.Steady, f.Ratio.Steady, f.Ceiling.Whole, f.Worker.Whole, f.Ratio.Whole, f.CPUPerMillion, f.PeakMB)
	}
	text.WriteString("\nsteady: from a fifth of the events on; whole run: the worker's from its first commit on\n")
}

// medians takes the median of every figure by itself, over the rounds of each variant.
func medians(runs []figures) []figures {
	var all []figures
	for len(runs) > 0 {
		m := runs[0]
		m.Round, m.Ceilings = 0, slices.Clone(m.Ceilings)
		n := 1
		for n < len(runs) && runs[n].Variant == m.Variant {
			n++
		}
		rounds := runs[:n]
		runs = runs[n:]
		for i := range m.Ceilings {
			m.Ceilings[i] = medianRates(rounds, func(f figures) rates { return f.Ceilings[i] })
		}
		m.Ceiling = medianRates(rounds, func(f figures) rates { return f.Ceiling })
		m.Worker = medianRates(rounds, func(f figures) rates { return f.Worker })
		m.Ratio = medianRates(rounds, func(f figures) rates { return f.Ratio })
		m.CPUSeconds = median(rounds, func(f figures) float64 { return f.CPUSeconds })
		m.CPUPerMillion = median(rounds, func(f figures) float64 { return f.CPUPerMillion })
		m.BusySeconds = median(rounds, func(f figures) float64 { return f.BusySeconds })
		m.PeakMB = median(rounds, func(f figures) float64 { return f.PeakMB })
		if m.Debezium != nil {
			m.Debezium = medianBeside(rounds)
		}
		all = append(all, m)
	}
	return all
}

func medianRates(rounds []figures, of func(figures) rates) rates {
	return rates{
		Whole:  median(rounds, func(f figures) float64 { return of(f).Whole }),
		Steady: median(rounds, func(f figures) float64 { return of(f).Steady }),
	}
}

// median returns the middle value of a figure, or the mean of the two.
func median[T any](rounds []T, figure func(T) float64) float64 {
	values := make([]float64, len(rounds))
	for i, f := range rounds {
		values[i] = figure(f)
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
