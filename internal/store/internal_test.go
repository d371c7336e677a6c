package store

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestSupportedVersions(t *testing.T) {
	for version, want := range map[string]bool{
		"3.5.0": true, "3.7.3": true, "3.10.1": true, "3.6.0-rc.1": true,
		"3.4.30": false, "2.3.8": false, "4.0.0": false, "": false, "x.y": false, "3": false,
	} {
		if got := supported(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

// etcd's Fatal stops the goroutine it is called in, and nothing else.
func TestFatalStandsStill(t *testing.T) {
	hook := newFatalHook()
	if hook.cause() != nil {
		t.Fatal("failed from the start")
	}
	var out strings.Builder
	logger := bridgeLogger(slog.New(slog.NewTextHandler(&out, nil)), hook)
	logger.Info("a detail")
	logger.Warn("an advice", zap.String("key", "value"))
	if got := out.String(); strings.Contains(got, "a detail") || !strings.Contains(got, `level=INFO msg="an advice" component=etcd key=value`) {
		t.Errorf("logged %q", got)
	}
	for _, die := range []func(string, ...zap.Field){logger.Fatal, logger.Panic} {
		// These goroutines stand still for good; that is what is tested.
		go func() {
			die("cannot save", zap.Error(errors.New("no space")))
			t.Error("went on")
		}()
		<-hook.failed
	}
	if got := hook.cause().Error(); got != "cannot save: no space" {
		t.Errorf("cause %q", got)
	}
}
