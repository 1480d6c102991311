// Command bench measures a worker end to end, on a real Kafka and a real PostgreSQL that it starts itself, beside the ceiling: the
// fastest that the same server takes the same rows, already encoded, in the same run. docs/performance.md explains the figures.
//
// It fails when an event is missing or stored twice, and never for being slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"auditsink/internal/testkit"
)

// options are the command line's.
type options struct {
	scenarios             []string
	events, indexedEvents int
	lanes                 int
	rounds                int
	flushRows, copyConns  int
	variants              []string
	settings              []string          // further AUDITSINK_ variables of the worker, as NAME=VALUE
	debeziumSettings      map[string]string // further properties of Debezium's connector
	debeziumJVM           string
	serverSettings        map[string]string // further ones of PostgreSQL
	binary                string            // of the worker; empty to build it
	json                  string            // file for the raw figures
	out                   string            // folder for the raw figures and their plots
	draw                  []string          // files of raw figures to draw again, in place of measuring
	connections           int               // of the ceiling

	backlog backlogPlan
	outage  outagePlan
	scale   scalePlan
	convert convertPlan
	reads   readsPlan

	latency  latencyPlan
	recovery recoveryPlan
	// ingestVariants are the variants of the scenarios that measure all indexes where none are asked for.
	ingestVariants []string
	growth         growthPlan
	curves         curvesPlan
}

// scenarioNames are what can be measured.
var scenarioNames = []string{
	"throughput", "compare", "outage", "backlog", "scale", "convert", "reads", "latency", "recovery", "growth", lanesCurve, workersCurve, partitionsCurve,
}

func main() {
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err, "(see -h)")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	o := options{
		backlog:  backlogPlan{lanes: 64},
		outage:   outagePlan{lanes: 8, rate: 5000, before: 20 * time.Second, down: time.Minute, after: 40 * time.Second},
		scale:    scalePlan{lanes: 16, rate: 2000, workers: []int{1, 4, 2}, each: 20 * time.Second},
		convert:  convertPlan{rows: 2_000_000, months: 24, rate: 500, writers: 4, before: 5 * time.Second, after: 5 * time.Second},
		reads:    readsPlan{rows: 2_000_000, months: 24, cold: 5, warm: 50},
		latency:  latencyPlan{runs: 5, shares: []int{25, 50, 90}},
		recovery: recoveryPlan{lanes: 8, before: 10 * time.Second},
		growth:   growthPlan{variants: []string{allIndexes, leanIndexes, hotIndexes}},
		curves:   curvesPlan{lanes: []int{4, 16, 64, 256}, workers: []int{1, 2, 4}, partitions: []int{1, 24, 200}, variants: []string{noIndex, allIndexes}},
	}
	atOnce := min(runtime.NumCPU(), 4) // for the ceiling and both sinks alike
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.events, "events", 1_000_000, "events of the variant none")
	flags.IntVar(&o.indexedEvents, "indexed-events", 500_000, "events of the other variants")
	flags.IntVar(&o.lanes, "lanes", 4, "partitions of the topic")
	flags.IntVar(&o.rounds, "rounds", 3, "rounds, of which the medians are taken")
	flags.IntVar(&o.flushRows, "flush-rows", 5000, "AUDITSINK_FLUSH_ROWS of the worker")
	flags.IntVar(&o.copyConns, "copy-conns", atOnce, "AUDITSINK_COPY_CONNS of the worker where full speed is measured; by default the cores, which the database runs on too, and 4 at most")
	flags.StringVar(&o.binary, "binary", "", "an auditsink that is built already")
	flags.StringVar(&o.json, "json", "", "write the raw figures to this file")
	flags.StringVar(&o.debeziumJVM, "debezium-jvm", debeziumJVM, "Java options of Kafka Connect")
	flags.StringVar(&o.out, "out", "", "write the raw figures and their plots to this folder")
	flags.Func("draw", "measure nothing: print the report of a file of raw figures again, and draw its plots to the folder of -out; files of several runs, parted by commas, become one with the rounds of all", func(s string) error {
		o.draw = strings.Split(s, ",")
		return nil
	})
	flags.IntVar(&o.connections, "connections", atOnce, "connections of the ceiling, and tasks of Debezium; by default as of -copy-conns")
	flags.IntVar(&o.growth.events, "growth-events", 10_000_000, "rows that a table grows to")
	flags.IntVar(&o.growth.slice, "growth-slice", 1_000_000, "rows of which the figures are taken each by itself")
	for _, list := range []struct {
		flag, of string
		to       *[]int
	}{{"curve-lanes", "lanes of topics", &o.curves.lanes}, {"curve-workers", "workers on a topic", &o.curves.workers}, {"curve-partitions", "partitions of the table", &o.curves.partitions}} {
		flags.Func(list.flag, fmt.Sprintf("numbers of %s, parted by commas (default %d)", list.of, *list.to), func(s string) error { return positives(s, list.to) })
	}
	scenarios := flags.String("scenarios", "throughput", "what to measure, parted by commas: "+strings.Join(scenarioNames, ", "))
	flags.IntVar(&o.convert.rows, "convert-rows", o.convert.rows, "rows of the table that is converted")
	flags.IntVar(&o.reads.rows, "reads-rows", o.reads.rows, "rows of the table that pages are read of")
	flags.Int64Var(&o.backlog.bytes, "backlog-bytes", 2_000_000_000, "bytes of the backlog's events")
	compressed := flags.String("backlog-codecs", "snappy,none,zstd", "how the backlog is compressed, a run for each")
	variants := flags.String("variants", "none,all", "indexes on audit_log, parted by commas: "+strings.Join(variantNames, ", ")+"; where it isn't given, growth measures all, lean and deferred, latency and recovery all alone")
	flags.IntVar(&o.latency.runs, "latency-runs", o.latency.runs, "runs of each load of the scenario latency, of which the medians are taken")
	flags.Float64Var(&o.latency.peak, "latency-peak", 0, "peak rate in events a second, of which the loads are shares (default measured)")
	flags.DurationVar(&o.latency.warmUp, "latency-warmup", 5*time.Second, "part of each load that is left out")
	flags.DurationVar(&o.latency.after, "latency-for", 20*time.Second, "part of each load that counts, after the warm-up")
	flags.IntVar(&o.recovery.kills, "recovery-kills", 5, "workers killed by the scenario recovery")
	flags.IntVar(&o.recovery.rate, "recovery-rate", 2000, "events a second of the scenario recovery")
	flags.DurationVar(&o.recovery.backlog, "recovery-backlog", time.Hour, "events of so long at -recovery-rate are the backlog that a worker catches up with")
	flags.Func("set", "another variable of the worker, NAME=VALUE; may be repeated", func(s string) error {
		if !strings.Contains(s, "=") {
			return errors.New("want NAME=VALUE")
		}
		o.settings = append(o.settings, s)
		return nil
	})
	pairs := func(name, of string) map[string]string {
		set := map[string]string{}
		flags.Func(name, "another "+of+", NAME=VALUE; may be repeated", func(s string) error {
			name, value, ok := strings.Cut(s, "=")
			if !ok {
				return errors.New("want NAME=VALUE")
			}
			set[name] = value
			return nil
		})
		return set
	}
	o.debeziumSettings, o.serverSettings = pairs("debezium-set", "property of Debezium's connector"), pairs("postgres-set", "setting of PostgreSQL")
	flags.SetOutput(io.Discard) // main says what is wrong
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(os.Stderr)
			flags.Usage()
		}
		return o, err
	}
	for _, list := range []struct {
		flag, value string
		known       []string
		to          *[]string
	}{
		{"variants", *variants, variantNames, &o.variants},
		{"scenarios", *scenarios, scenarioNames, &o.scenarios},
		{"backlog-codecs", *compressed, []string{"snappy", "none", "zstd"}, &o.backlog.codecs},
	} {
		*list.to = strings.Split(list.value, ",")
		for _, name := range *list.to {
			if !slices.Contains(list.known, name) {
				return o, fmt.Errorf("-%s: %q is none of %s", list.flag, name, strings.Join(list.known, ", "))
			}
		}
	}
	o.ingestVariants = []string{allIndexes}
	flags.Visit(func(f *flag.Flag) {
		if f.Name == "variants" {
			o.ingestVariants = o.variants
			o.growth.variants, o.curves.variants = o.variants, o.variants
		}
	})
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.lanes < 1 || o.rounds < 1 || min(o.events, o.indexedEvents) < 10*o.lanes {
		return o, errors.New("-lanes and -rounds must be positive, -events and -indexed-events ten times -lanes")
	}
	if o.backlog.bytes < 1 {
		return o, errors.New("-backlog-bytes must be positive")
	}
	if l := o.latency; l.runs < 1 || l.peak < 0 || l.warmUp < 0 || l.after <= 0 {
		return o, errors.New("-latency-runs and -latency-for must be positive, -latency-peak and -latency-warmup not negative")
	}
	if p := o.recovery; p.kills < 1 || p.rate < 1 || p.backlog <= 0 {
		return o, errors.New("-recovery-kills, -recovery-rate and -recovery-backlog must be positive")
	}
	if o.connections < 1 || o.growth.slice < 30*o.lanes || o.growth.events < o.growth.slice {
		return o, errors.New("-connections must be positive, -growth-slice thirty times -lanes, and -growth-events not less than -growth-slice")
	}
	if slices.Contains(o.scenarios, workersCurve) && slices.Max(o.curves.workers) > o.lanes {
		return o, errors.New("-curve-workers must not exceed -lanes")
	}
	if o.draw != nil && o.out == "" {
		return o, errors.New("-draw needs -out")
	}
	return o, nil
}

// positives reads numbers parted by commas.
func positives(s string, to *[]int) error {
	*to = nil
	for text := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is no positive number", text)
		}
		*to = append(*to, n)
	}
	return nil
}

// bench is the servers and the worker that all rounds use.
type bench struct {
	options
	kafka    *testkit.Broker
	postgres *testkit.PostgresServer
	folder   string // for the worker's binary and its logs
	warm     bool   // whether the ceiling was measured
	// commitTimes is whether the server keeps when its transactions committed. Then rates are taken from that.
	commitTimes bool
}

// run measures everything and prints the report. What it started has ended when it returns.
func run(ctx context.Context, o options) (err error) {
	if o.draw != nil {
		return redraw(o.draw, o.out)
	}
	b := &bench{options: o, commitTimes: slices.Contains(o.scenarios, "compare")}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	r := report{Facts: b.facts(ctx)}
	for _, name := range o.scenarios {
		if err := b.scenario(ctx, name, &r); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := r.publish(os.Stdout, o.json); err != nil || o.out == "" {
		return err
	}
	return r.keep(o.out, strings.Join(o.scenarios, "-"))
}

// scenario measures what one name of -scenarios stands for.
func (b *bench) scenario(ctx context.Context, name string, r *report) (err error) {
	switch name {
	case "outage":
		r.Outage, err = b.surviveOutage(ctx)
	case "backlog":
		r.Backlogs, err = b.backlogs(ctx)
	case "convert":
		r.Convert, err = b.convertTable(ctx)
	case "reads":
		r.Reads, err = b.measureReads(ctx)
	case "latency":
		r.Latencies, err = b.measureLatencies(ctx)
	case "recovery":
		r.Recovery, err = b.measureRecovery(ctx)
	case "scale":
		r.Scale, err = b.measureScaling(ctx)
	case "compare":
		r.Compared, err = b.measureVariants(ctx, name, b.debezium)
	case "growth":
		r.Growth, err = b.measureGrowth(ctx)
	case lanesCurve, workersCurve, partitionsCurve:
		var runs []curveFigures
		runs, err = b.measureCurve(ctx, name)
		r.Curves = append(r.Curves, runs...)
	default:
		r.Runs, err = b.measureVariants(ctx, name, nil)
	}
	return err
}

// start builds the worker and starts the servers.
func (b *bench) start(ctx context.Context) (err error) {
	if b.folder, err = os.MkdirTemp("", "auditsink-bench-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if b.binary == "" {
		b.binary = filepath.Join(b.folder, "auditsink")
		say("building the worker")
		build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "auditsink/cmd/auditsink") //nolint:gosec // our own folder
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the worker: %w\n%s", err, output)
		}
	}
	say("starting Kafka and PostgreSQL")
	// The heap is small, since a broker's cache is the kernel's; the JIT is the usual one, other than in tests.
	if b.kafka, err = testkit.StartKafka(ctx, testkit.KafkaOptions{JVM: []string{"-Xmx512m", "-XX:+UseSerialGC"}}); err != nil {
		return err
	}
	b.postgres, err = testkit.StartPostgres(ctx, testkit.PostgresOptions{
		Version:  18,
		Settings: b.postgresSettings(),
	})
	return err
}

// close ends the servers and removes everything.
func (b *bench) close() error {
	var errs []error
	if b.postgres != nil {
		errs = append(errs, b.postgres.Close())
	}
	if b.kafka != nil {
		errs = append(errs, b.kafka.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(b.folder))...)
}

// eventsOf is how many events are stored with the indexes of a variant.
func (b *bench) eventsOf(variant string) int {
	if variant == noIndex {
		return b.events
	}
	return b.indexedEvents
}

// postgresSettings are those of the server that aren't its defaults.
func (b *bench) postgresSettings() map[string]string {
	settings := map[string]string{"shared_buffers": "2GB", "wal_compression": "on"}
	if b.autovacuumOff() {
		settings["autovacuum"] = "off"
	}
	if b.commitTimes {
		settings["track_commit_timestamp"] = "on"
	}
	maps.Copy(settings, b.serverSettings)
	return settings
}

// autovacuumOff is whether nothing but rates of full speed are measured. A vacuum of a large table that falls into one's turn and not into another's would
// count as its slowness.
func (b *bench) autovacuumOff() bool {
	return !slices.ContainsFunc(b.scenarios, func(name string) bool {
		return !slices.Contains([]string{"throughput", "compare", lanesCurve, workersCurve, partitionsCurve}, name)
	})
}

// contender is another sink: it stores what the worker has stored, and adds its figures to the round's.
type contender func(ctx context.Context, l *load, f *figures) error

// measureVariants runs all rounds of each variant, for a scenario.
func (b *bench) measureVariants(ctx context.Context, scenario string, beside contender) (all []figures, err error) {
	for _, name := range b.variants {
		runs, err := b.variant(ctx, "bench-"+scenario+"-"+name, name, beside)
		if err != nil {
			return nil, fmt.Errorf("measure with indexes: %s: %w", name, err)
		}
		all = append(all, runs...)
	}
	return all, nil
}

// variant runs all rounds with or without indexes: the ceiling, the worker, what is to be beside it and the ceiling again, so that what slows the machine for
// a while slows all of them.
func (b *bench) variant(ctx context.Context, topic, name string, beside contender) ([]figures, error) {
	events := b.eventsOf(name)
	say("indexes: %s: making %d events", name, events)
	s := newSource(b.lanes, now)
	if beside != nil {
		s.comparable()
	}
	load, err := b.preloadFrom(ctx, topic, s, events)
	if err != nil {
		return nil, err
	}
	var runs []figures
	for round := range b.rounds {
		f := figures{Variant: name, Round: round + 1, Events: events, EventBytes: load.bytes / float64(events)}
		ceiling := func() error {
			r, err := b.ceiling(ctx, load, name, b.connections)
			if err != nil {
				return fmt.Errorf("ceiling: %w", err)
			}
			f.Ceilings = append(f.Ceilings, r)
			return nil
		}
		if err := ceiling(); err != nil {
			return nil, err
		}
		if err := b.endToEnd(ctx, load, &f); err != nil {
			return nil, fmt.Errorf("end to end: %w", err)
		}
		if beside != nil {
			if err := beside(ctx, load, &f); err != nil {
				return nil, fmt.Errorf("beside it: %w", err)
			}
		}
		if err := ceiling(); err != nil {
			return nil, err
		}
		f.compare()
		say("indexes: %s: round %d: %s", name, f.Round, f)
		runs = append(runs, f)
	}
	return runs, nil
}

// say tells how it goes. The report alone goes to standard output.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
