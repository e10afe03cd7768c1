"""Names of columns of RELION's STAR files that several modules read: each is spelled here alone.

RELION defines them in metadata_label.h. `Source.metadata` is keyed by them, whatever format the source has.
`simulation` writes what RELION writes, and spells the names itself, so that a slip here fails a test.
"""

from __future__ import annotations

# Of one image: where it is, and the file that it came from.
IMAGE_NAME = "rlnImageName"
MICROGRAPH_NAME = "rlnMicrographName"
COORDINATE_X = "rlnCoordinateX"
COORDINATE_Y = "rlnCoordinateY"
RANDOM_SUBSET = "rlnRandomSubset"
AUTOPICK_FIGURE_OF_MERIT = "rlnAutopickFigureOfMerit"

# Of one image: its contrast transfer function, lengths in Å and angles in degrees.
DEFOCUS_U = "rlnDefocusU"
DEFOCUS_V = "rlnDefocusV"
DEFOCUS_ANGLE = "rlnDefocusAngle"
PHASE_SHIFT = "rlnPhaseShift"
CTF_BFACTOR = "rlnCtfBfactor"
CTF_SCALEFACTOR = "rlnCtfScalefactor"
CTF_MAX_RESOLUTION = "rlnCtfMaxResolution"
CTF_FIGURE_OF_MERIT = "rlnCtfFigureOfMerit"

# Of one image: Euler angles in degrees, origins in Å, and in px before RELION 3.1; its class.
ANGLE_ROT = "rlnAngleRot"
ANGLE_TILT = "rlnAngleTilt"
ANGLE_PSI = "rlnAnglePsi"
ORIGIN_X_ANGST = "rlnOriginXAngst"
ORIGIN_Y_ANGST = "rlnOriginYAngst"
ORIGIN_X = "rlnOriginX"
ORIGIN_Y = "rlnOriginY"
CLASS_NUMBER = "rlnClassNumber"

# Of an optics group.
OPTICS_GROUP = "rlnOpticsGroup"
OPTICS_GROUP_NAME = "rlnOpticsGroupName"
VOLTAGE = "rlnVoltage"
SPHERICAL_ABERRATION = "rlnSphericalAberration"
AMPLITUDE_CONTRAST = "rlnAmplitudeContrast"
BEAM_TILT_X = "rlnBeamTiltX"
BEAM_TILT_Y = "rlnBeamTiltY"
IMAGE_SIZE = "rlnImageSize"
IMAGE_DIMENSIONALITY = "rlnImageDimensionality"
CTF_DATA_ARE_CTF_PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"

# Pixel sizes in Å, of images, of micrographs, of movies, of a model; and what RELION 1 computed them from.
IMAGE_PIXEL_SIZE = "rlnImagePixelSize"
MICROGRAPH_PIXEL_SIZE = "rlnMicrographPixelSize"
MICROGRAPH_ORIGINAL_PIXEL_SIZE = "rlnMicrographOriginalPixelSize"
PIXEL_SIZE = "rlnPixelSize"
DETECTOR_PIXEL_SIZE = "rlnDetectorPixelSize"
MAGNIFICATION = "rlnMagnification"

# Of a class, and of the job that made it.
REFERENCE_IMAGE = "rlnReferenceImage"
REFERENCE_DIMENSIONALITY = "rlnReferenceDimensionality"
CLASS_DISTRIBUTION = "rlnClassDistribution"
ESTIMATED_RESOLUTION = "rlnEstimatedResolution"
ACCURACY_ROTATIONS = "rlnAccuracyRotations"
ACCURACY_TRANSLATIONS_ANGST = "rlnAccuracyTranslationsAngst"
ACCURACY_TRANSLATIONS = "rlnAccuracyTranslations"
CLASS_SCORE = "rlnClassScore"
SELECTED = "rlnSelected"
PARTICLE_DIAMETER = "rlnParticleDiameter"

# Of a job: its files and its options.
MODEL_STAR_FILE = "rlnModelStarFile"
EXPERIMENTAL_DATA_STAR_FILE = "rlnExperimentalDataStarFile"
JOB_OPTION_VARIABLE = "rlnJobOptionVariable"
JOB_OPTION_VALUE = "rlnJobOptionValue"
