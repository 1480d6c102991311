package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/indexes"
	"auditsink/internal/postgres"
)

func newIndexesCommand() *cobra.Command {
	var profile, build string
	var asJSON, execute bool
	c := &cobra.Command{
		Use:   "indexes",
		Short: "Give audit_log the indexes of a profile while it is read and written; without --execute only tell how",
		Long: `indexes changes which indexes audit_log has (full or lean), and when its partitions get them (immediate or deferred), by default to what the settings say. Without --execute it
lists the steps and changes nothing.

What is new is built CONCURRENTLY, partition by partition, and only then what is no longer wanted is dropped. The few steps that need a lock on audit_log wait for it for a
moment at a time, and are tried again. Stopped at any point, the same command goes on where it stood. Indexes that are none of a profile's stay.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, pool, err := openChecked(cmd.Context(), maintenanceURL)
			if err != nil {
				return err
			}
			defer pool.Close()
			to := choice(cfg)
			if profile != "" {
				to.Profile = indexes.Profile(profile)
			}
			if build != "" {
				to.Build = indexes.Build(build)
			}
			if err := to.Valid(); err != nil {
				return &usageError{err}
			}
			return changeIndexes(cmd, pool, indexes.Change{To: to, Grace: cfg.IndexGrace, Now: time.Now}, execute, asJSON)
		},
	}
	f := c.Flags()
	f.StringVar(&profile, "profile", "", "full or lean (default: AUDITSINK_INDEX_PROFILE)")
	f.StringVar(&build, "build", "", "immediate or deferred (default: AUDITSINK_INDEX_BUILD)")
	f.BoolVar(&execute, "execute", false, "do it")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// indexesReport is what the command prints as JSON.
type indexesReport struct {
	From   indexes.Choice `json:"from"`
	To     indexes.Choice `json:"to"`
	DryRun bool           `json:"dry_run"`
	Steps  []indexes.Step `json:"steps"` // to be done, or done
	Left   []indexes.Step `json:"left"`  // where an error ended it
}

// changeIndexes tells the steps, or does them, and what was done also where an error ended it.
func changeIndexes(cmd *cobra.Command, pool *postgres.Pool, change indexes.Change, execute, asJSON bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	r := indexesReport{To: change.To, DryRun: !execute, Steps: []indexes.Step{}, Left: []indexes.Step{}}
	var err error
	if r.From, err = indexes.Chosen(ctx, pool); err != nil {
		return postgres.Explain(err)
	}
	var failed error
	if execute {
		change.Did = func(s indexes.Step) {
			if r.Steps = append(r.Steps, s); !asJSON {
				fmt.Fprintf(out, "done: %s\n", s) //nolint:errcheck // the last line tells
			}
		}
		failed = runChange(ctx, pool, change)
		if ctx.Err() != nil {
			failed = fmt.Errorf("interrupted; the same command does what is left: %w", context.Cause(ctx))
		}
	}
	plan, err := change.Plan(context.WithoutCancel(ctx), pool)
	failed = errors.Join(postgres.Explain(failed), postgres.Explain(err))
	switch {
	case !execute:
		r.Steps = listed(plan)
	case !errors.Is(failed, indexes.ErrOvertaken):
		r.Left = listed(plan)
	}
	if asJSON {
		return errors.Join(printJSON(out, r), failed)
	}
	summary := fmt.Sprintf("indexes of audit_log: %s; %d steps done, %d left", r.To, len(r.Steps), len(r.Left))
	if r.DryRun {
		for _, s := range r.Steps {
			fmt.Fprintln(out, s) //nolint:errcheck // the last line tells
		}
		summary = fmt.Sprintf("dry run, nothing was changed: from %s to %s, %d steps (--execute does them)", r.From, r.To, len(r.Steps))
	}
	_, err = fmt.Fprintln(out, summary)
	return errors.Join(err, failed)
}

// runChange runs it on a connection of its own, whose settings end with it.
func runChange(ctx context.Context, pool *postgres.Pool, change indexes.Change) error {
	acquired, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := acquired.Hijack()
	return errors.Join(change.Run(ctx, conn), conn.Close(context.WithoutCancel(ctx)))
}

// choice is what the settings say.
func choice(cfg config.Config) indexes.Choice {
	return indexes.Choice{Profile: indexes.Profile(cfg.IndexProfile), Build: indexes.Build(cfg.IndexBuild)}
}

// chooseIndexes gives a database without events the indexes of the settings. One that has events keeps those it was told to have; other says which, where the settings say otherwise.
func chooseIndexes(ctx context.Context, pool *postgres.Pool, cfg config.Config) (other string, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return indexes.Choose(ctx, tx, choice(cfg)) })
	if errors.Is(err, indexes.ErrNotEmpty) {
		return otherIndexes(ctx, pool, cfg)
	}
	return "", postgres.Explain(err)
}

// otherIndexes says how the database's indexes differ from those of the settings; empty where they don't.
func otherIndexes(ctx context.Context, pool *postgres.Pool, cfg config.Config) (string, error) {
	had, err := indexes.Chosen(ctx, pool)
	if err != nil || had == choice(cfg) {
		return "", postgres.Explain(err)
	}
	return fmt.Sprintf("audit_log has other indexes (%s) than the settings say (%s): `auditsink migrate indexes --execute` changes them while ingest goes on", had, choice(cfg)), nil
}

// tellOtherIndexes logs once where the database's indexes aren't those of the settings. The worker does what it does with either.
func tellOtherIndexes(ctx context.Context, pool *postgres.Pool, cfg config.Config, log *zap.Logger) {
	other, err := otherIndexes(ctx, pool, cfg)
	switch {
	case err != nil:
		log.Warn("which indexes audit_log is to have can't be read", zap.Error(err))
	case other != "":
		log.Warn(other)
	}
}
