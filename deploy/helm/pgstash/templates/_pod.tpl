{{- define "pgstash.name" -}}
{{- if contains "pgstash" .Release.Name }}{{ .Release.Name | trunc 29 | trimSuffix "-" }}
{{- else }}{{ printf "%s-pgstash" (.Release.Name | trunc 21 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "pgstash.selector" -}}
app.kubernetes.io/name: pgstash
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pgstash.labels" -}}
{{ include "pgstash.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "pgstash.secret" -}}
{{- .Values.existingSecret.name | default (include "pgstash.name" .) }}
{{- end }}

{{- define "pgstash.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* A pod template. Given: root, args, probes (true for the service), restartPolicy. */}}
{{- define "pgstash.pod" -}}
{{- $root := .root }}
{{- $values := .root.Values }}
{{- $keys := ternary $values.existingSecret.keys (keys $values.secrets | sortAlpha) (ne $values.existingSecret.name "") }}
metadata:
  labels:
    {{- include "pgstash.labels" $root | nindent 4 }}
    {{- with $values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    checksum/settings: {{ toJson (list $values.settings $values.secrets $values.configFile) | sha256sum }}
    {{- with $values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  {{- with .restartPolicy }}
  restartPolicy: {{ . }}
  {{- end }}
  serviceAccountName: {{ include "pgstash.name" $root }}
  automountServiceAccountToken: {{ $values.serviceAccount.automountToken }}
  terminationGracePeriodSeconds: 30
  {{- with $values.image.pullSecrets }}
  imagePullSecrets: {{ toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: pgstash
      image: {{ include "pgstash.image" $root | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: {{ toJson .args }}
      envFrom:
        - configMapRef:
            name: {{ include "pgstash.name" $root }}
      env:
        {{- if .probes }}
        - name: HEALTH_PORT
          value: {{ $values.healthPort | quote }}
        {{- end }}
        {{- if $values.configFile }}
        - name: PGSTASH_CONFIG
          value: /etc/pgstash/config/pgstash.toml
        {{- end }}
        {{- range $keys }}
        - name: {{ . }}_FILE
          value: /etc/pgstash/secrets/{{ . }}
        {{- end }}
      {{- if .probes }}
      ports:
        - name: health
          containerPort: {{ $values.healthPort }}
      livenessProbe:
        httpGet:
          path: /healthz
          port: health
        initialDelaySeconds: 10
        periodSeconds: 30
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: health
        periodSeconds: 30
        timeoutSeconds: 5
      {{- end }}
      resources: {{ toYaml $values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if $keys }}
        - name: secrets
          mountPath: /etc/pgstash/secrets
          readOnly: true
        {{- end }}
        {{- if $values.configFile }}
        - name: config
          mountPath: /etc/pgstash/config
          readOnly: true
        {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 64Mi
    {{- if $keys }}
    - name: secrets
      secret:
        secretName: {{ include "pgstash.secret" $root }}
        defaultMode: 0440
    {{- end }}
    {{- if $values.configFile }}
    - name: config
      configMap:
        name: {{ include "pgstash.name" $root }}-config
    {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
